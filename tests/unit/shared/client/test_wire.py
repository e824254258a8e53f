"""Between the vocabulary and protobuf, and between errors and gRPC statuses."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.client import wire
from tachikoma.errors import (
    InvalidRequest,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ServerError,
    TachikomaError,
    Unauthenticated,
    Unavailable,
    by_reason,
)
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.vocabulary.agents import AgentInfo
from tachikoma.vocabulary.audit import AuditedRequest, ExecAuditLog
from tachikoma.vocabulary.limits import ResourceLimits
from tachikoma.vocabulary.requests import MAX_TIMEOUT, ExecRequest
from tachikoma.vocabulary.results import (
    Approval,
    CancelOutcome,
    CancelResponse,
    ExecOutput,
    ExecResponse,
    ExecStatus,
    ExecTransition,
    OutputKind,
    OutputSummary,
)
from tachikoma.vocabulary.schedules import DueOutcome, Missed, Overlap, ScheduledRun, ScheduleStatus
from tachikoma.vocabulary.states import ExecState

EARLIER = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
LATER = EARLIER + timedelta(seconds=1.5)
SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

STATUS = ExecStatus(
    id="job-7",
    agent_id="web-1",
    state=ExecState.FAILED,
    command=("/bin/ls", "ä", ""),
    requested_by="spiffe://tachikoma.local/user/alice",
    request_time=EARLIER,
    start_time=EARLIER,
    end_time=LATER,
    exit_code=-1,
    error="killed by SIGKILL",
    policy_applied="web@0123456789ab",
    cancel_requested_by="spiffe://tachikoma.local/user/bob",
    timeout=timedelta(minutes=5),
    user="web",
    work_dir="/srv",
    history=(
        ExecTransition(state=ExecState.QUEUED, time=EARLIER),
        ExecTransition(state=ExecState.FAILED, time=LATER),
    ),
    deadline=LATER,
    approvers=("spiffe://tachikoma.local/user/boss", "spiffe://tachikoma.local/group/*"),
    approved_by="spiffe://tachikoma.local/user/boss",
    approval_reason="looks right",
)
RESPONSE = ExecResponse(
    id="job-7",
    agent_id="web-1",
    state=ExecState.CANCELLED,
    exit_code=137,
    stdout=b"\0\xff\n",
    stderr=b"\x80",
    stdout_summary=OutputSummary(total_bytes=2**40, sha256=SHA256, truncated=True),
    stderr_summary=OutputSummary(total_bytes=1, sha256=SHA256),
    start_time=EARLIER,
    end_time=LATER,
    duration=timedelta(microseconds=1_500_001),
    signal=9,
    error="cancelled",
    cancelled=True,
)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
REQUESTS = st.fixed_dictionaries(
    {
        "id": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True),
        "agent_id": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True),
        "command": st.lists(TEXT.filter(bool), min_size=1, max_size=5),
        "work_dir": TEXT.map(lambda text: f"/{text}"),
        "environment": st.dictionaries(TEXT.filter(lambda name: name and "=" not in name), TEXT, max_size=4),
        "stdin": st.binary(max_size=50),
        "timeout": st.none() | st.timedeltas(min_value=timedelta(microseconds=1), max_value=MAX_TIMEOUT),
        "user": st.sampled_from(["", "root", "web"]),
        "interactive": st.booleans(),
        "tty": st.booleans(),
        "requested_by": TEXT,
        "request_time": st.datetimes(timezones=st.just(UTC)),
    }
).map(lambda values: ExecRequest(**values))


def over_the_wire(message: Any) -> Any:
    """The message as the other side gets it."""
    return type(message).FromString(message.SerializeToString())


# --- every type there and back ----------------------------------------------------------------------------------------


@given(REQUESTS)
def test_any_request_arrives_as_it_was_sent(request: ExecRequest) -> None:
    assert wire.request_from_pb(over_the_wire(wire.request_to_pb(request))) == request


def test_a_request_without_id_gets_one() -> None:
    message = pb.ExecRequest(agent_id="a", command=["x"])
    first, second = wire.request_from_pb(message), wire.request_from_pb(message)
    assert first.id
    assert first.id != second.id


def test_a_request_that_names_no_timeout_leaves_it_to_policy() -> None:
    assert wire.request_from_pb(pb.ExecRequest(agent_id="a", command=["x"])).timeout is None


def test_a_timeout_of_zero_is_not_taken_for_none() -> None:
    with pytest.raises(InvalidRequest, match="timeout"):
        wire.request_from_pb(pb.ExecRequest(agent_id="a", command=["x"], timeout=Duration()))


@pytest.mark.parametrize("state", ExecState)
def test_a_status_arrives_as_it_was_sent(state: ExecState) -> None:
    status = STATUS.model_copy(update={"state": state})
    assert wire.status_from_pb(over_the_wire(wire.status_to_pb(status))) == status


def test_a_status_of_something_that_never_started_has_no_times() -> None:
    status = STATUS.model_copy(update={"start_time": None, "end_time": None, "history": ()})
    assert wire.status_from_pb(over_the_wire(wire.status_to_pb(status))) == status


@pytest.mark.parametrize("state", ExecState)
def test_a_response_arrives_as_it_was_sent(state: ExecState) -> None:
    response = RESPONSE.model_copy(update={"state": state})
    assert wire.response_from_pb(over_the_wire(wire.response_to_pb(response))) == response


def test_a_response_about_nothing_arrives_as_it_was_sent() -> None:
    response = ExecResponse(id="e", agent_id="a", state=ExecState.EXPIRED)
    assert wire.response_from_pb(over_the_wire(wire.response_to_pb(response))) == response


@pytest.mark.parametrize(
    "output",
    [
        ExecOutput(id="e", kind=OutputKind.STDOUT, seq=1, time=EARLIER, data=bytes(range(256))),
        ExecOutput(id="e", kind=OutputKind.STDERR, seq=2**40, time=EARLIER, data=b""),
        ExecOutput(id="e", kind=OutputKind.GAP, seq=7, missing_bytes=2**40),
        ExecOutput(id="e", kind=OutputKind.STATUS, status=STATUS),
        ExecOutput(id="e", kind=OutputKind.RESULT, seq=9, result=RESPONSE),
    ],
    ids=lambda output: output.kind,
)
def test_an_output_message_arrives_as_it_was_sent(output: ExecOutput) -> None:
    assert wire.output_from_pb(over_the_wire(wire.output_to_pb(output))) == output


@given(st.binary(max_size=100), st.integers(1, 2**63), st.sampled_from([OutputKind.STDOUT, OutputKind.STDERR]))
def test_any_chunk_arrives_as_it_was_sent(data: bytes, seq: int, kind: OutputKind) -> None:
    output = ExecOutput(id="e", kind=kind, seq=seq, time=EARLIER, data=data)
    assert wire.output_from_pb(over_the_wire(wire.output_to_pb(output))) == output


@pytest.mark.parametrize("outcome", CancelOutcome)
def test_the_answer_to_a_cancel_arrives_as_it_was_sent(outcome: CancelOutcome) -> None:
    answer = CancelResponse(outcome=outcome, status=STATUS)
    assert wire.cancel_from_pb(over_the_wire(wire.cancel_to_pb(answer))) == answer


@pytest.mark.parametrize(
    "agent",
    [
        AgentInfo(id="never-seen"),
        AgentInfo(
            id="web-1",
            online=True,
            last_seen=EARLIER,
            version="0.1.0",
            hostname="web1.example",
            labels={"rack": "r1", "": ""},
            running=3,
            slots=64,
            queued=1000,
            load=0.25,
            memory_used=0.5,
            disk_used=1.0,
            warnings=("commands run without cgroup limits",),
        ),
    ],
    ids=lambda agent: agent.id,
)
def test_an_agent_arrives_as_it_was_sent(agent: AgentInfo) -> None:
    assert wire.agent_from_pb(over_the_wire(wire.agent_to_pb(agent))) == agent


@pytest.mark.parametrize(
    "event",
    [
        ExecAuditLog(cursor="1-0", time=EARLIER, event="admitted"),
        ExecAuditLog(
            cursor="1769860800000-3",
            time=LATER,
            event="failed",
            id="job-7",
            agent_id="web-1",
            requested_by="spiffe://tachikoma.local/user/alice",
            command="/bin/ls 'ä b'",
            exit_code=2,
            start_time=EARLIER,
            duration=timedelta(seconds=1.5),
            client_ip="::1",
            authorized=True,
            policy_applied="web@0123456789ab",
            reason="why",
            seq=17,
            actor="spiffe://tachikoma.local/user/bob",
            rule="allowedCommands",
            request=AuditedRequest(
                command=("/bin/ls", "***"),
                work_dir="/srv",
                environment=("A", "B"),
                timeout=1.5,
                user="web",
                interactive=True,
                tty=True,
                stdin_bytes=7,
            ),
            command_hmac="ab" * 32,
            evidence_sha256="cd" * 32,
        ),
        ExecAuditLog(cursor="2-0", time=LATER, event="denied", request=AuditedRequest(command=("x",))),
    ],
    ids=lambda event: event.event,
)
def test_an_audit_event_arrives_as_it_was_sent(event: ExecAuditLog) -> None:
    assert wire.audit_from_pb(over_the_wire(wire.audit_to_pb(event))) == event


# --- hostile input ----------------------------------------------------------------------------------------------------

PB_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SECONDS = st.sampled_from(
    [0, 1, -1, 2**63 - 1, -(2**63), 315_576_000_001, -62_135_596_801, 253_402_300_800]
) | st.integers(-(2**63), 2**63 - 1)
NANOS = st.sampled_from([0, 1, -1, 999_999_999, 1_000_000_000, 2**31 - 1, -(2**31)]) | st.integers(-(2**31), 2**31 - 1)


@st.composite
def wild_requests(draw: st.DrawFn) -> pb.ExecRequest:
    message = pb.ExecRequest(
        id=draw(PB_TEXT | st.just("e")),
        agent_id=draw(PB_TEXT | st.just("a")),
        command=draw(st.lists(PB_TEXT, max_size=3) | st.just(["/bin/true"])),
        work_dir=draw(PB_TEXT),
        environment=draw(st.dictionaries(PB_TEXT, PB_TEXT, max_size=3)),
        stdin=draw(st.binary(max_size=20)),
        user=draw(PB_TEXT),
        interactive=draw(st.booleans()),
        tty=draw(st.booleans()),
        requested_by=draw(PB_TEXT),
    )
    if draw(st.booleans()):
        message.timeout.seconds, message.timeout.nanos = draw(SECONDS), draw(NANOS)
    if draw(st.booleans()):
        message.request_time.seconds, message.request_time.nanos = draw(SECONDS), draw(NANOS)
    return message


@given(wild_requests())
def test_a_wild_request_is_read_or_refused_as_invalid_and_nothing_else(message: pb.ExecRequest) -> None:
    try:
        request = wire.request_from_pb(over_the_wire(message))
    except InvalidRequest:
        return
    assert request.command == tuple(message.command)
    assert request.timeout is None or timedelta(0) < request.timeout <= MAX_TIMEOUT


@given(SECONDS, NANOS)
def test_no_duration_passes_its_bounds(seconds: int, nanos: int) -> None:
    message = pb.ExecRequest(agent_id="a", command=["x"])
    message.timeout.seconds, message.timeout.nanos = seconds, nanos
    try:
        timeout = wire.request_from_pb(message).timeout
    except InvalidRequest:
        return
    assert timeout is not None
    assert timedelta(0) < timeout <= MAX_TIMEOUT


@given(SECONDS, NANOS)
def test_a_wild_request_time_is_read_or_refused(seconds: int, nanos: int) -> None:
    message = pb.ExecRequest(agent_id="a", command=["x"])
    message.request_time.seconds, message.request_time.nanos = seconds, nanos
    try:
        time = wire.request_from_pb(message).request_time
    except InvalidRequest:
        return
    assert abs(time.timestamp() - seconds) <= 3


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("command", {"command": []}),
        ("command", {"command": ["x\0"]}),
        ("command", {"command": ["x" * 131_072]}),
        ("agent_id", {"agent_id": "a.b"}),
        ("agent_id", {"agent_id": ""}),
        ("id", {"id": "a\n"}),
        ("stdin", {"stdin": bytes(4 * 1024 * 1024 + 1)}),
        ("environment", {"environment": {"A=": "x"}}),
        ("timeout", {"timeout": Duration(seconds=-1)}),
        ("timeout", {"timeout": Duration(nanos=1)}),
        ("user", {"user": "#-1"}),
        ("work_dir", {"work_dir": "tmp"}),
    ],
)
def test_bad_input_is_told_by_field(field: str, values: dict[str, Any]) -> None:
    message = pb.ExecRequest(**{"agent_id": "a", "command": ["x"], **values})
    with pytest.raises(InvalidRequest, match=rf"^invalid request: {field}: "):
        wire.request_from_pb(message)


def test_an_output_message_of_a_newer_server_is_an_error_of_ours() -> None:
    with pytest.raises(ServerError, match="update"):
        wire.output_from_pb(pb.ExecOutput(id="e"))


def test_an_approval_arrives_as_it_was_sent() -> None:
    request = ExecRequest(agent_id="web-1", command=("/bin/ls", "secret"), stdin=b"\0\xff", environment={"A": "b"})
    approval = Approval(
        status=STATUS, request=request, digest="ab" * 32, policy="web@1", limits=ResourceLimits(pids=50, cpus=0.5)
    )
    assert wire.approval_from_pb(over_the_wire(wire.approval_to_pb(approval))) == approval


# --- errors -----------------------------------------------------------------------------------------------------------


def sent(error: TachikomaError) -> TachikomaError:
    """The error as the client gets it."""
    return wire.error_from_rpc(error.code, str(error), [(wire.STATUS_DETAILS, wire.error_to_details(error))])


@pytest.mark.parametrize("kind", by_reason.values(), ids=by_reason)
def test_an_error_arrives_as_its_own_class(kind: type[TachikomaError]) -> None:
    received = sent(kind("what, where and what to do"))
    assert type(received) is kind
    assert str(received) == "what, where and what to do"
    assert received.metadata == {}
    assert received.retry_after_seconds is None


@pytest.mark.parametrize("kind", by_reason.values(), ids=by_reason)
def test_facts_and_the_time_to_come_again_arrive(kind: type[TachikomaError]) -> None:
    received = sent(kind("later", metadata={"rule": "maxTimeout", "policy": "web@1"}, retry_after_seconds=1.25))
    assert type(received) is kind
    assert received.metadata == {"rule": "maxTimeout", "policy": "web@1"}
    assert received.retry_after_seconds == 1.25


@given(TEXT, st.dictionaries(TEXT, TEXT, max_size=3), st.none() | st.floats(0, 1e6))
def test_any_error_arrives(message: str, metadata: dict[str, str], retry: float | None) -> None:
    received = sent(ResourceExhausted(message, metadata=metadata, retry_after_seconds=retry))
    assert (type(received), str(received), received.metadata) == (ResourceExhausted, message, metadata)
    assert (received.retry_after_seconds is None) == (retry is None)
    if retry is not None:
        assert received.retry_after_seconds is not None
        assert math.isclose(received.retry_after_seconds, retry, abs_tol=1e-6)


def test_a_message_is_cut_before_it_breaks_a_header() -> None:
    details = wire.error_to_details(NotFound("ä" * 100_000))
    assert len(details) < 8192
    assert str(wire.error_from_rpc(NotFound.code, "", [(wire.STATUS_DETAILS, details)])) == "ä" * 2000


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.UNAUTHENTICATED, Unauthenticated),
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.INTERNAL, ServerError),
        (grpc.StatusCode.UNIMPLEMENTED, ServerError),
        (grpc.StatusCode.PERMISSION_DENIED, ServerError),
    ],
)
def test_an_answer_of_grpc_itself_is_told_by_its_code(code: grpc.StatusCode, kind: type[TachikomaError]) -> None:
    received = wire.error_from_rpc(code, "no route", [("server", "x"), ("trace-bin", b"\0")])
    assert type(received) is kind
    assert str(received) == f"no route ({code.name})"


def test_an_answer_without_words_is_told_by_the_name_of_its_code() -> None:
    assert str(wire.error_from_rpc(grpc.StatusCode.UNKNOWN, "", [])) == "UNKNOWN (UNKNOWN)"


@pytest.mark.parametrize(
    "info",
    [
        ErrorInfo(reason="PERMISSION_DENIED", domain="somebody.else"),
        ErrorInfo(reason="NO_SUCH_REASON", domain=wire.ERROR_DOMAIN),
        ErrorInfo(),
    ],
)
def test_details_of_somebody_else_are_not_taken_for_ours(info: ErrorInfo) -> None:
    status = Status(code=7, message="theirs")
    status.details.add().Pack(info)
    received = wire.error_from_rpc(
        grpc.StatusCode.PERMISSION_DENIED, "denied", [(wire.STATUS_DETAILS, status.SerializeToString())]
    )
    assert type(received) is ServerError
    assert str(received) == "denied (PERMISSION_DENIED)"


def test_a_detail_this_client_does_not_know_does_no_harm() -> None:
    status = Status.FromString(wire.error_to_details(PermissionDenied("no", metadata={"rule": "r"})))
    status.details.insert(0, AnyMessage(type_url="type.googleapis.com/google.rpc.Novelty", value=b"\xff\xff"))
    received = wire.error_from_rpc(PermissionDenied.code, "no", [(wire.STATUS_DETAILS, status.SerializeToString())])
    assert type(received) is PermissionDenied
    assert received.metadata == {"rule": "r"}


def _status(*details: AnyMessage) -> bytes:
    return Status(code=14, message="x", details=details).SerializeToString()


@pytest.mark.parametrize(
    "details",
    [
        b"\xff",
        b"\x0a",
        _status(AnyMessage(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")),
        _status(AnyMessage(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff")),
    ],
    ids=["garbage", "cut short", "garbled info", "garbled retry"],
)
def test_unreadable_details_still_make_an_error_of_ours(details: bytes) -> None:
    received = wire.error_from_rpc(grpc.StatusCode.UNAVAILABLE, "away", [(wire.STATUS_DETAILS, details)])
    assert isinstance(received, Unavailable)


def test_a_time_to_come_again_beyond_all_bounds_still_makes_an_error_of_ours() -> None:
    status = Status.FromString(wire.error_to_details(Unavailable("away")))
    status.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=2**63 - 1)))
    received = wire.error_from_rpc(
        grpc.StatusCode.UNAVAILABLE, "away", [(wire.STATUS_DETAILS, status.SerializeToString())]
    )
    assert isinstance(received, Unavailable)


# --- schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", DueOutcome)
def test_a_scheduled_run_comes_back_as_it_was(outcome: DueOutcome) -> None:
    bare = ScheduledRun(due=EARLIER, time=LATER, outcome=outcome)
    full = bare.model_copy(
        update={
            "id": "job-7", "agent_id": "web-1", "state": ExecState.FAILED, "reason": "why", "count": 2**40,
            "first": EARLIER, "requested_by": "spiffe://x/y",
        }
    )  # fmt: skip
    for value in (bare, full):
        assert wire.scheduled_run_from_pb(wire.scheduled_run_to_pb(value)) == value


def test_a_schedule_comes_back_as_it_was() -> None:
    bare = ScheduleStatus(name="a", when="every 5m", agent_id="web-1", command=("ls", ""))
    full = ScheduleStatus(
        name="a", when="every 5m", agent_id="web-1", command=("ls",), enabled=False, missed=Missed.RUN_ONCE,
        overlap=Overlap.SKIP, paused=True, paused_by="spiffe://x/y", paused_at=EARLIER, pause_reason="why",
        next_due=LATER, last=ScheduledRun(due=EARLIER, time=LATER, outcome=DueOutcome.RUN, id="job-7"),
    )  # fmt: skip
    for value in (bare, full):
        assert wire.schedule_from_pb(wire.schedule_to_pb(value)) == value
