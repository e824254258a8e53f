"""Records, parsed from whatever Redis contains."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields as fields_of
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.errors import RecordAltered
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.executions.final_state import FinalState
from tachikoma_orchestrator.executions.record import REPORTED, Record, ReportedResult, Step

GOOD = {
    b"state": b"SUCCEEDED", b"agent": b"web-1", b"requested_by": b"spiffe://x/user/alice",
    b"history": b"QUEUED 1000;STARTED 2000;SUCCEEDED 3000", b"admitted_ms": b"1000", b"deadline_ms": b"600000",
    b"digest": b"d", b"policy": b"web@1", b"command": b"/bin/true", b"client_ip": b"192.0.2.7",
    b"request": b'{"command":["/bin/true"],"timeout":300}', b"settled_ms": b"3000", b"waits": b"1",
    b"exit_code": b"0", b"signal": b"0", b"started_ms": b"1999", b"ended_ms": b"2999", b"duration_us": b"1000000",
    b"chunks": b"2", b"stdout_bytes": b"7", b"stderr_bytes": b"0", b"receipt": b"signed",
}  # fmt: skip
REQUIRED = ("state", "history", "admitted_ms", "deadline_ms")


def changed(**fields: bytes) -> Record:
    return Record.parse("job-7", {**GOOD, **{name.encode(): value for name, value in fields.items()}})


def test_a_record_has_typed_fields() -> None:
    record = changed()
    assert (record.exec_id, record.state, record.agent) == ("job-7", ExecState.SUCCEEDED, "web-1")
    assert record.history[-1] == Step(ExecState.SUCCEEDED, 3000)
    assert record.states == [ExecState.QUEUED, ExecState.STARTED, ExecState.SUCCEEDED]
    assert (record.admitted_ms, record.deadline_ms, record.waits, record.receipt) == (1000, 600_000, True, "signed")
    assert record.result() == ReportedResult(
        started_ms=1999, ended_ms=2999, settled_ms=3000, exit_code=0, signal=0, duration_us=1_000_000, chunks=2,
        stdout_bytes=7, stderr_bytes=0,
    )  # fmt: skip


def test_its_status_has_times_and_the_request() -> None:
    status = changed().status()
    assert (status.command, status.timeout) == (("/bin/true",), timedelta(minutes=5))
    assert status.start_time == datetime(1970, 1, 1, 0, 0, 1, 999_000, tzinfo=UTC)
    assert status.end_time == datetime(1970, 1, 1, 0, 0, 2, 999_000, tzinfo=UTC)
    assert [step.state for step in status.history] == [ExecState.QUEUED, ExecState.STARTED, ExecState.SUCCEEDED]


def test_facts_that_no_receipt_reported_yet_are_unknown() -> None:
    fields = {name: value for name, value in GOOD.items() if name.decode() not in (*REPORTED, "settled_ms")}
    record = Record.parse("job-7", fields)
    assert {getattr(record.result(), field.name) for field in fields_of(ReportedResult)} == {None}
    assert (record.status().exit_code, record.status().end_time, record.receipt) == (-1, None, "")


def test_the_end_is_the_ledgers_if_the_agent_reported_none() -> None:
    assert changed(ended_ms=b"").status().end_time == datetime(1970, 1, 1, 0, 0, 3, tzinfo=UTC)


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("value", [None, b"", b"nonsense", b"\xff", b"1" * 5000])
def test_a_field_that_every_reader_needs_is_required(name: str, value: bytes | None) -> None:
    fields = {key: old for key, old in GOOD.items() if key != name.encode()}
    with pytest.raises(RecordAltered, match="job-7"):
        Record.parse("job-7", fields if value is None else {**fields, name.encode(): value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("request", b"[" * 5000), ("request", b"\xff"), ("admitted_ms", b"9" * 40), ("started_ms", b"9" * 40),
     ("exit_code", b"many"), ("approvers", b"{"), ("settled_ms", b"x")],
)  # fmt: skip
def test_a_field_that_few_readers_need_leaves_the_record_readable(name: str, value: bytes) -> None:
    record = changed(**{name: value})
    assert (record.state, record.receipt) == (ExecState.SUCCEEDED, "signed")
    with pytest.raises(RecordAltered, match="job-7"):
        record.status()


@given(
    st.dictionaries(
        st.sampled_from(sorted(GOOD)),
        st.one_of(st.binary(max_size=30), st.sampled_from(sorted(GOOD.values())), st.integers().map(b"%d".__mod__)),
        max_size=4,
    )
)
def test_whatever_redis_contains_is_a_record_or_an_error_of_ours(changes: dict[bytes, bytes]) -> None:
    try:
        record = Record.parse("job-7", {**GOOD, **changes})
    except RecordAltered:
        return
    # A final state can be made of everything that was parsed.
    final = FinalState.without_receipt(record)
    assert final.exec_id == "job-7"
    with suppress(RecordAltered):
        assert record.status().id == "job-7"
