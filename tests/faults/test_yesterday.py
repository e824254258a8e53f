"""The state of yesterday is restored, while orchestrators and agents run on: nothing starts twice or is undone.

Every part reads its clock through a library that moves it by nearly a day between the backup and the restore, so that
leases, deadlines and records expire as they do over night. Certificates of the development stack last a day.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from backups import make, restore
from policies import BOSS, write_policy
from support import AGENT, wait_until
from world import Job, World, submit

from tachikoma import (
    BatchRequest,
    BatchState,
    Client,
    DueOutcome,
    ExecRequest,
    ExecState,
    NotFound,
    TachikomaError,
    Unavailable,
)

NIGHT_SECONDS = 23 * 3600
pytestmark = pytest.mark.timeout(400)


class Nights(World):
    """A world whose clocks can be moved, all at once."""

    def _make_parts(self) -> None:
        super()._make_parts()
        library, self._offset = self.data / "clock.so", self.data / "offset"
        compiler, source = os.environ.get("CC", "cc"), Path(__file__).with_name("clock.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source)], check=True)
        self._offset.write_bytes(bytes(8))
        for part in self.parts:
            clock = {"LD_PRELOAD": str(library), "CLOCK_FILE": str(self._offset)}
            part._environment = {**part._environment, **clock}

    def pass_the_night(self) -> None:
        # In place: the processes have mapped the file.
        with self._offset.open("r+b", buffering=0) as file:
            file.write(NIGHT_SECONDS.to_bytes(8, "little", signed=True))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[Nights]:
    data = tmp_path_factory.mktemp("yesterday")
    write_policy(data)
    request = {"command": ["/bin/sh", "-c", f"echo run >> {data / 'marks'}"], "timeout": "30s"}
    often = {"name": "often", "every": "1s", "agentId": AGENT, "request": request}
    (data / "schedules.yaml").write_text(json.dumps({"schedules": [often]}))
    with Nights(
        data,
        redis_server=redis_server,
        queue_timeout="5m",
        schedules=str(data / "schedules.yaml"),
        environment={"TACHIKOMA_LEASE": "5m"},
    ) as made:
        yield made


def events(world: Nights) -> list[dict[str, Any]]:
    """The events in the audit log, without a line that is just being written."""
    log = (world.data / "audit" / "audit.jsonl").read_text()
    lines = [json.loads(line) for line in log.splitlines(keepends=True) if line.endswith("\n")]
    return [line["event"] for line in lines if "event" in line]


def state(client: Client, exec_id: str) -> ExecState | None:
    with suppress(NotFound, Unavailable):
        return client.status(exec_id).state
    return None


def ran(client: Client) -> int:
    runs = client.scheduled_runs("often", limit=1000)
    return sum(run.outcome is DueOutcome.RUN for run in runs)


def test_the_state_of_yesterday_undoes_nothing_and_starts_nothing_twice(world: Nights, tmp_path: Path) -> None:
    jobs = {name: Job.make(tmp_path, name) for name in ("before", "evening", "today")}
    fenced = Job.make(tmp_path, "fenced")
    rejected = ExecRequest(id="rejected", agent_id=AGENT, command=("/usr/bin/mkdir", str(tmp_path / "rejected")))
    with Client(world.profile()) as client, Client(world.issue(BOSS)) as boss:
        # Yesterday: the backup has an execution that is queued, one that waits for its approval, and one that ended.
        assert client.execute(jobs["before"].request).state is ExecState.SUCCEEDED
        wait_until(lambda: ran(client), "the schedule runs")
        client.submit(rejected)
        with world.stopped(AGENT):
            submit(client, fenced)
            done = make(world, tmp_path / "backup")
            assert done.returncode == 0, done
            assert client.cancel(fenced.id).outcome == "CANCELLED"
        # The evening.
        boss.reject("rejected", "not today")
        client.revoke_user("leaver", "left")
        assert client.execute(jobs["evening"].request).state is ExecState.SUCCEEDED
        mark = tmp_path / "batch"
        request = BatchRequest(targets=(AGENT,), command=("/bin/sh", "-c", f"echo run >> {mark}"), timeout=60)
        batch = client.submit_batch(request).id
        wait_until(lambda: client.batch(batch).state is BatchState.DONE, "the batch has ended")
        # The morning.
        world.pass_the_night()
        runs = ran(client)
        wait_until(lambda: answers(client, jobs["today"]), "an execution of today has ended")
        wait_until(lambda: ran(client) > runs, "the schedule goes on")
        restore(world, tmp_path / "backup", tmp_path / "restored")
        wait_until(lambda: any(event["event"] == "redis_life" for event in events(world)), "the new life is known")
        wait_until(lambda: state(client, "today") is ExecState.SUCCEEDED, "today's record is restored")
        world.wait_for_agents()
        after = Job.make(tmp_path, "after")
        submit(client, after)
        wait_until(lambda: state(client, "after") is ExecState.SUCCEEDED, "the agent has taken what was queued before")
        assert (state(client, "fenced"), fenced.starts) == (ExecState.CANCELLED, 0)
        assert state(client, "rejected") is ExecState.REJECTED
        assert not (tmp_path / "rejected").exists()
        assert [user.name for user in client.users() if user.revoked] == ["leaver"]
        wait_until(lambda: client.batch(batch).end_time is not None, "the batch has ended")
        # A caller that repeats a request starts nothing, whatever the answer is.
        for job in (*jobs.values(), fenced):
            with suppress(TachikomaError):
                client.execute(job.request)
        assert {name: job.starts for name, job in jobs.items()} == dict.fromkeys(jobs, 1)
        assert (fenced.starts, mark.read_text()) == (0, "run\n")
    numbers = [event["seq"] for event in events(world)]
    assert numbers == sorted(set(numbers))
    assert sum(later != earlier + 1 for earlier, later in pairwise(numbers)) <= 1


def answers(client: Client, job: Job) -> bool:
    try:
        return client.execute(job.request).state is ExecState.SUCCEEDED
    except TachikomaError:
        return False
