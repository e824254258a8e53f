"""A backup of a running stack is restored, while orchestrator and agent run on: nothing that was reported is undone."""

from __future__ import annotations

from pathlib import Path

import pytest
from backups import make, restore
from support import prepare, request, wait_until

from json_schemas import checked
from tachikoma import Client, ExecState, NotFound, Unavailable
from tachikoma.dev.stack import Stack

pytestmark = pytest.mark.long


class RestoredStack(Stack):
    """A stack whose trail lacks what came after the backup, so its books are not compared."""


def test_a_restored_backup_undoes_nothing(tmp_path: Path, redis_server: Path | None) -> None:
    backup = tmp_path / "backup"
    (tmp_path / "data").mkdir()
    with (
        RestoredStack(prepare(tmp_path / "data"), redis_server=redis_server) as stack,
        Client(stack.profile()) as client,
    ):
        before, after = request("seq", "100"), request("seq", "200")
        first = client.execute(before)
        done = make(stack, backup)
        assert done.returncode == 0, done
        assert checked("redis backup", done.stdout)["keys"] > 0
        assert (backup / "journals" / "agent-1.db").is_file()
        second = client.execute(after)
        report = checked("redis restore", restore(stack, backup, tmp_path / "restored"))
        assert (report["restoredInto"], report["damage"]) == (str(tmp_path / "restored"), [])

        def lives() -> list[str]:
            return [event.reason for event in client.audit(limit=1000) if event.event == "redis_life"]

        wait_until(
            lambda: any("is missing, so what was queued before expires" in why for why in lives()), "it is known"
        )
        wait_until(lambda: state(client, after.id) is ExecState.SUCCEEDED, "what the backup does not have is restored")
        for asked, response in ((before, first), (after, second)):
            assert client.status(asked.id).state is ExecState.SUCCEEDED
            assert client.execute(asked).stdout == response.stdout
        assert client.execute(request("true")).exit_code == 0


def state(client: Client, exec_id: str) -> ExecState | None:
    try:
        return client.status(exec_id).state
    except (NotFound, Unavailable):
        # Its record may be restored from its agent for a few seconds.
        return None
