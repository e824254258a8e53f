"""The client without models: it reads and asks the same as the library does."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.client import wire
from tachikoma.client.plain import PlainMessage, PlainRequest
from tachikoma.errors import InvalidRequest, ServerError
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.requests import ExecRequest, make_request
from tachikoma.vocabulary.results import ExecOutput, ExecResponse, ExecStatus, OutputSummary
from tachikoma.vocabulary.states import ExecState

NOW = datetime(2026, 1, 31, tzinfo=UTC)
DIGEST = "ab" * 32
#: What each form of a message, a status, a result and a summary has.
MESSAGE = ("id", "kind", "seq", "offset", "data", "missing_bytes")
STATUS = ("id", "state", "deadline", "approvers", "approved_by", "approval_reason", "observers")
RESULT = ("id", "agent_id", "state", "exit_code", "error")
SUMMARY = ("total_bytes", "sha256")


def same(read: Any, model: Any, names: tuple[str, ...]) -> None:
    assert {name: getattr(read, name) for name in names} == {name: getattr(model, name) for name in names}


def check(sent: ExecOutput) -> None:
    """Read a message in both forms, and compare them."""
    raw = wire.output_to_pb(sent)
    read, model = PlainMessage.read(raw), wire.output_from_pb(raw)
    same(read, model, MESSAGE)
    assert (read.status is None, read.result is None) == (model.status is None, model.result is None)
    if read.status is not None:
        same(read.status, model.status, STATUS)
    if read.result is not None and model.result is not None:
        same(read.result, model.result, RESULT)
        same(read.result.stdout_summary, model.result.stdout_summary, SUMMARY)
        same(read.result.stderr_summary, model.result.stderr_summary, SUMMARY)


@pytest.mark.parametrize("kind", [OutputKind.STDOUT, OutputKind.STDERR, OutputKind.SCREEN])
@pytest.mark.parametrize("data", [b"", b"a\xff\0"])
def test_a_chunk_is_the_same_in_both_forms(kind: OutputKind, data: bytes) -> None:
    check(ExecOutput(id="job-7", kind=kind, seq=5, time=NOW, data=data, offset=9))


def test_a_gap_is_the_same_in_both_forms() -> None:
    check(ExecOutput(id="job-7", kind=OutputKind.GAP, seq=5, missing_bytes=2**40))


@pytest.mark.parametrize("state", ExecState)
@pytest.mark.parametrize("more", [{}, {"deadline": NOW, "approvers": ("boss", "other"), "observers": ("a",)},
                                  {"approved_by": "boss", "approval_reason": "fine"}])  # fmt: skip
def test_a_status_is_the_same_in_both_forms(state: ExecState, more: dict[str, Any]) -> None:
    status = ExecStatus(
        id="job-7", agent_id="web-1", state=state, command=("x",), requested_by="alice", request_time=NOW, **more
    )
    check(ExecOutput(id="job-7", kind=OutputKind.STATUS, seq=3, status=status))


@pytest.mark.parametrize("state", [state for state in ExecState if state.terminal])
def test_a_result_is_the_same_in_both_forms(state: ExecState) -> None:
    summary = OutputSummary(total_bytes=3, sha256=DIGEST)
    result = ExecResponse(
        id="job-7", agent_id="web-1", state=state, exit_code=5, error="why", stdout_summary=summary,
        start_time=NOW, end_time=NOW, duration=timedelta(seconds=1),
    )  # fmt: skip
    check(ExecOutput(id="job-7", kind=OutputKind.RESULT, seq=3, result=result))


def test_progress_of_input_is_no_output() -> None:
    read = PlainMessage.read(pb.ExecOutput(id="job-7", accepted=pb.InputAccepted(offset=5)))
    assert (read.kind, read.data, read.status, read.result) == (OutputKind.ACCEPTED, b"", None, None)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (pb.ExecOutput(id="job-7"), "of a kind this client does not know; update it"),
        (pb.ExecOutput(id="job-7", status=pb.ExecStatus(state=77)), "cannot read"),  # type: ignore[arg-type]
        (pb.ExecOutput(id="job-7", status=pb.ExecStatus()), "cannot read"),
        (pb.ExecOutput(id="job-7", result=pb.ExecResponse(state=-1)), "cannot read"),  # type: ignore[arg-type]
    ],
)
def test_what_a_newer_server_sends_is_an_error_of_this_library(message: pb.ExecOutput, told: str) -> None:
    with pytest.raises(ServerError, match=told):
        PlainMessage.read(message)
    with pytest.raises(ServerError, match=told):
        wire.output_from_pb(message)


def test_a_deadline_that_python_cannot_hold_is_an_error_of_this_library() -> None:
    status = pb.ExecStatus(state=pb.EXEC_STATE_QUEUED)
    status.deadline.seconds = 2**60
    with pytest.raises(ServerError, match="cannot read"):
        PlainMessage.read(pb.ExecOutput(id="job-7", status=status))


@given(st.binary(max_size=200))
def test_whatever_a_server_sends_is_read_or_an_error_of_this_library(raw: bytes) -> None:
    message = pb.ExecOutput()
    with suppress(Exception):
        message.ParseFromString(raw)
    with suppress(ServerError):
        PlainMessage.read(message)


# --- requests ---------------------------------------------------------------------------------------------------------

#: Texts of which some are out of bounds as an id, a path, a user, an argument or a variable.
TEXTS = st.sampled_from(
    ["", "web-1", "root", "a", "-a", "/", "/tmp", "tmp", "a b", "a=b", "A" * 63, "A" * 64, "é", "a\0b", "\udc80", "#1",
     "www-data", "_apt", "x" * 33, "/" + "x" * 4096, "x" * 200_000]
)  # fmt: skip
VALUES = st.fixed_dictionaries(
    {"agent_id": TEXTS, "command": st.lists(TEXTS, max_size=3).map(tuple)},
    optional={
        "environment": st.dictionaries(TEXTS, TEXTS, max_size=2),
        "timeout": st.sampled_from([timedelta(seconds=s) for s in (-1, 0, 1, 604_800, 604_801)]),
        "work_dir": TEXTS, "user": TEXTS, "id": TEXTS, "stdin": st.binary(max_size=4),
    },
)  # fmt: skip


@given(VALUES)
def test_a_request_is_sent_exactly_if_the_model_takes_it_and_with_the_same_fields(values: dict[str, Any]) -> None:
    message = PlainRequest(**values).message()
    try:
        request = make_request(values)
    except InvalidRequest:
        assert message is None
        return
    assert message is not None
    read = wire.request_from_pb(message)
    chosen = {"request_time": read.request_time} | ({} if "id" in values else {"id": read.id})
    assert read == request.model_copy(update=chosen)


@pytest.mark.parametrize(
    "values",
    [
        {"command": ("x",) * 1025}, {"stdin": b"x" * (4 * 1024 * 1024 + 1)},
        {"environment": {f"V{number}": "" for number in range(257)}},
    ],
)  # fmt: skip
def test_a_request_that_is_too_large_is_left_to_the_model(values: dict[str, Any]) -> None:
    values = {"agent_id": "web-1", "command": ("x",)} | values
    assert PlainRequest(**values).message() is None
    with pytest.raises(InvalidRequest):
        make_request(values)


def test_each_request_has_an_id_of_its_own_and_the_time() -> None:
    first, second = (PlainRequest("web-1", ("true",)).message() for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.id != second.id
    assert isinstance(wire.request_from_pb(first), ExecRequest)
    assert abs(first.request_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)) < timedelta(minutes=1)
