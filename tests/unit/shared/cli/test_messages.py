"""Messages about an execution on the descriptors of this process."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tachikoma.cli import messages
from tachikoma.client.plain import PlainMessage, PlainStatus
from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.states import ExecState

NOW = datetime(2026, 1, 31, tzinfo=UTC)


@pytest.mark.parametrize("state", ExecState)
def test_only_what_waits_for_an_approval_says_who_may_give_it(
    state: ExecState, status: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    messages.note_approval(status(state=state, approvers=("boss",), deadline=NOW))
    assert ("approval by boss" in capsys.readouterr().err) == (state is ExecState.PENDING_APPROVAL)


def test_an_approval_names_who_gave_it_and_why(status: Any, capsys: pytest.CaptureFixture[str]) -> None:
    messages.note_approval(status(approved_by="boss", approval_reason="fine\x1b"))
    assert capsys.readouterr().err == "tachikoma: approved by boss: fine\\x1b\n"


async def test_each_kind_of_message_goes_where_it_belongs(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    waiting = PlainStatus("job-7", ExecState.PENDING_APPROVAL, None, ("boss",), "", "", ())
    for message in (
        PlainMessage("job-7", OutputKind.STDOUT, 1, data=b"out\xff"),
        PlainMessage("job-7", OutputKind.SCREEN, 1, data=b"screen"),
        PlainMessage("job-7", OutputKind.STDERR, 2, data=b"err\n"),
        PlainMessage("job-7", OutputKind.GAP, 2, missing_bytes=7),
        PlainMessage("job-7", OutputKind.STATUS, 2, status=waiting),
        PlainMessage("job-7", OutputKind.ACCEPTED, 2),
    ):
        await messages.write_message(message)
    shown = capfdbinary.readouterr()
    assert shown.out == b"out\xffscreen"
    assert shown.err.splitlines() == [
        b"err",
        b"tachikoma: 7 bytes of output are missing",
        b"tachikoma: waiting until - for an approval by boss",
        b"tachikoma: to approve: tachikoma approve job-7",
    ]
