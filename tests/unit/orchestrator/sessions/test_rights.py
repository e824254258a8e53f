"""The request of a session as the ledger has it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from tachikoma.errors import RecordAltered
from tachikoma.vocabulary.audit import AuditedRequest
from tachikoma_orchestrator.executions.record import Record
from tachikoma_orchestrator.sessions.rights import recorded_request

AUDITED = AuditedRequest(
    command=("bash", "-l"), work_dir="/srv", environment=("LANG",), timeout=60, user="web", interactive=True, tty=True
)
RECORD = Record.parse(
    "job-7",
    {
        b"state": b"STARTED", b"agent": b"web-1", b"requested_by": b"spiffe://x/user/alice",
        b"history": b"QUEUED 1;STARTED 2", b"admitted_ms": b"1", b"deadline_ms": b"2",
        b"request": AUDITED.to_json().encode(),
    },
)  # fmt: skip


def test_everything_that_policy_decides_on_is_there() -> None:
    request = recorded_request(RECORD)
    assert (request.id, request.agent_id, request.requested_by) == ("job-7", "web-1", "spiffe://x/user/alice")
    assert (request.command, request.user, request.work_dir) == (("bash", "-l"), "web", "/srv")
    assert (request.interactive, request.tty, request.timeout) == (True, True, timedelta(minutes=1))
    assert request.environment == {"LANG": ""}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"command": []}',
        '{"command": ["x"], "timeout": 1e300}',
        '{"command": ["x"], "work_dir": "a\\u0000b"}',
    ],
)
def test_an_altered_record_is_noticed(text: str) -> None:
    with pytest.raises(RecordAltered, match="its request in the ledger cannot be read"):
        recorded_request(replace(RECORD, request=text))
