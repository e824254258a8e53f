"""Between the vocabulary and protobuf."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from importlib import import_module
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from tachikoma import vocabulary
from tachikoma.client import batch_wire, wire, wire_records
from tachikoma.client.converters import Presence, WireField, WireFormat
from tachikoma.errors import InvalidRequest, ServerError
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.vocabulary.agents import AgentInfo, AgentTrust, Enrolment, Revocation
from tachikoma.vocabulary.audit import AuditedRequest, ExecAuditLog
from tachikoma.vocabulary.batches import BatchState
from tachikoma.vocabulary.limits import OutputLimit, ResourceLimits, ResourceUsage
from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.model import CallersModel, Model
from tachikoma.vocabulary.policies import ExecPolicy, PolicyStatus, RateLimitConfig
from tachikoma.vocabulary.request_rules import MAX_TIMEOUT
from tachikoma.vocabulary.requests import ExecRequest, Terminal
from tachikoma.vocabulary.results import (
    Approval,
    CancelOutcome,
    CancelResponse,
    ExecOutput,
    ExecResponse,
    ExecStatus,
    ExecTransition,
    KillReceipt,
    OutputSummary,
)
from tachikoma.vocabulary.schedules import DueOutcome, Missed, Overlap, ScheduledRun, ScheduleStatus
from tachikoma.vocabulary.states import ExecState
from tachikoma.vocabulary.users import UserEnrolment

FORMATS = wire.FORMATS + wire_records.FORMATS + batch_wire.FORMATS
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
        "terminal": st.none() | st.builds(Terminal, columns=st.integers(0, 65535), type=st.just("screen")),
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
            reported_labels={"rack": "r2"},
            running=3,
            slots=64,
            queued=1000,
            load=0.25,
            memory_used=0.5,
            disk_used=1.0,
            warnings=("commands run without cgroup limits",),
            isolation=("shared", "private"),
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


# --- the tables -------------------------------------------------------------------------------------------------------

#: Models that do not travel as protobuf, or whose attributes do not, and why.
MODELS_WITHOUT_FORMAT = {
    CallersModel: "is a base class",
    ExecPolicy: "is read from policy files only",
    RateLimitConfig: "is part of ExecPolicy",
    OutputLimit: "is part of ExecPolicy and of the orders that agents get",
}
ATTRIBUTES_WITHOUT_FIELD = {
    (ExecOutput, "kind"): "is the name of the oneof's field",
    (ExecOutput, "data"): "is the content of stdout or stderr in the oneof",
    (ExecOutput, "status"): "is the content of status in the oneof",
    (ExecOutput, "missing_bytes"): "is the content of gap in the oneof",
    (ExecOutput, "result"): "is the content of result in the oneof",
    (ExecOutput, "accepted"): "is the content of accepted in the oneof",
    (Enrolment, "agent_id"): "is known from the request",
    (UserEnrolment, "name"): "is known from the request",
}
#: Messages without a model, and why.
ARGUMENTS = "carries the arguments of one client method"
RESULTS = "carries the values that one client method returns"
AGENT = "is exchanged by the worker and the orchestrator only"
MESSAGES_WITHOUT_FORMAT = {
    "OutputGap": "is one number, in ExecOutput.missing_bytes",
    "StatusResponse": RESULTS,
    **dict.fromkeys(["AttachRequest", "CancelRequest", "StatusRequest", "ListRequest"], ARGUMENTS),
    "ListResponse": RESULTS,
    **dict.fromkeys(["ListApprovalsRequest", "GetApprovalRequest", "ApproveRequest", "RejectRequest"], ARGUMENTS),
    "ListApprovalsResponse": RESULTS,
    **dict.fromkeys(["ListBatchApprovalsRequest", "GetBatchApprovalRequest"], ARGUMENTS),
    **dict.fromkeys(["ApproveBatchRequest", "RejectBatchRequest"], ARGUMENTS),
    "ListBatchApprovalsResponse": RESULTS,
    **dict.fromkeys(["DrainAgentRequest", "ResumeAgentRequest", "LabelAgentRequest", "ListAgentsRequest"], ARGUMENTS),
    "ListAgentsResponse": RESULTS,
    **dict.fromkeys(["GetPolicyStatusRequest", "ListAuditEventsRequest"], ARGUMENTS),
    "ListAuditEventsResponse": RESULTS,
    **dict.fromkeys(["ListRecordingsRequest", "ReadRecordingRequest"], ARGUMENTS),
    **dict.fromkeys(["ListRecordingsResponse", "RecordingPart"], RESULTS),
    **dict.fromkeys(["ListSchedulesRequest", "NextDueTimesRequest", "PauseScheduleRequest"], ARGUMENTS),
    **dict.fromkeys(["ResumeScheduleRequest", "RunScheduleRequest", "ListScheduledRunsRequest"], ARGUMENTS),
    **dict.fromkeys(["ListSchedulesResponse", "NextDueTimesResponse", "ListScheduledRunsResponse"], RESULTS),
    "ExecInput": "is written by the session of the client, and read by the session of the orchestrator",
    **dict.fromkeys(["SessionAttach", "InputData", "EndOfInput", "OutputWritten"], "is a part of ExecInput"),
    **dict.fromkeys(["SessionDetach", "SessionClose"], "is a part of ExecInput"),
    **dict.fromkeys(["EnrollAgentRequest", "RevokeAgentRequest"], ARGUMENTS),
    **dict.fromkeys(["WatchBatchRequest", "GetBatchRequest", "ListBatchesRequest", "CancelBatchRequest"], ARGUMENTS),
    "ListBatchesResponse": RESULTS,
    "TargetCount": "is an entry of the dictionary BatchStatus.totals",
    **dict.fromkeys(["JoinRequest", "JoinResponse", "RenewAgentRequest", "RenewAgentResponse"], AGENT),
    **dict.fromkeys(["RenewIdentityRequest", "RenewIdentityResponse"], "is exchanged by a client's renewal only"),
    **dict.fromkeys(["EnrollUserRequest", "ListUsersRequest", "RevokeUserRequest"], ARGUMENTS),
    "ListUsersResponse": RESULTS,
}
#: Fields of messages with a format that are in no table.
FIELDS_WITHOUT_ATTRIBUTE = {
    ("ExecOutput", name): "is in the oneof"
    for name in ("stdout", "stderr", "status", "gap", "result", "accepted", "screen")
}


def models() -> set[type[Model]]:
    """All models of the vocabulary."""
    for module in pkgutil.iter_modules(vocabulary.__path__, "tachikoma.vocabulary."):
        import_module(module.name)
    found: set[type[Model]] = set()
    pending = [Model]
    while pending:
        for child in pending.pop().__subclasses__():
            if child.__module__.startswith("tachikoma.vocabulary."):
                found.add(child)
                pending.append(child)
    return found


def test_every_model_of_the_vocabulary_has_a_table_or_a_reason() -> None:
    assert {form.model for form in FORMATS} | set(MODELS_WITHOUT_FORMAT) == models()


def test_every_attribute_of_a_model_has_a_row_or_a_reason() -> None:
    rows = {(form.model, field.attribute) for form in FORMATS for field in form.fields}
    attributes = {(form.model, name) for form in FORMATS for name in form.model.model_fields}
    assert rows | set(ATTRIBUTES_WITHOUT_FIELD) == attributes
    assert not rows & set(ATTRIBUTES_WITHOUT_FIELD)


def test_every_message_has_a_table_or_a_reason() -> None:
    names = {form.message.DESCRIPTOR.name for form in FORMATS}
    assert names | set(MESSAGES_WITHOUT_FORMAT) == set(pb.DESCRIPTOR.message_types_by_name)
    assert not names & set(MESSAGES_WITHOUT_FORMAT)


def test_every_field_of_a_message_has_a_row_or_a_reason() -> None:
    rows = {(form.message.DESCRIPTOR.name, field.name) for form in FORMATS for field in form.fields}
    fields = {
        (form.message.DESCRIPTOR.name, name) for form in FORMATS for name in form.message.DESCRIPTOR.fields_by_name
    }
    assert rows | set(FIELDS_WITHOUT_ATTRIBUTE) == fields


def test_no_field_has_two_rows() -> None:
    for form in FORMATS:
        names = [field.name for field in form.fields]
        assert len(names) == len(set(names)), form.model


@pytest.mark.parametrize(
    ("form", "field"),
    [(form, field) for form in FORMATS for field in form.fields],
    ids=lambda value: getattr(value, "name", None) or value.model.__name__,
)
def test_an_unset_field_is_tracked_where_the_table_relies_on_it(form: WireFormat[Any, Any], field: WireField) -> None:
    descriptor = form.message.DESCRIPTOR.fields_by_name[field.name]
    if field.presence is Presence.OPTIONAL:
        assert descriptor.has_presence
        assert not form.model.model_fields[field.attribute].is_required()
    if field.presence is Presence.NONZERO:
        assert not descriptor.has_presence
        assert not form.model.model_fields[field.attribute].is_required()


@pytest.mark.parametrize(
    ("kind", "numbers", "prefix"),
    [
        (ExecState, pb.ExecState, "EXEC_STATE"),
        (CancelOutcome, pb.CancelOutcome, "CANCEL_OUTCOME"),
        (DueOutcome, pb.DueOutcome, "DUE_OUTCOME"),
    ],
)
def test_an_enum_has_the_same_names_on_the_wire(kind: type[StrEnum], numbers: Any, prefix: str) -> None:
    assert {f"{prefix}_{member}" for member in kind} | {f"{prefix}_UNSPECIFIED"} == set(numbers.keys())


def test_every_enum_of_the_api_is_compared() -> None:
    assert set(pb.DESCRIPTOR.enum_types_by_name) == {
        *("ExecState", "CancelOutcome", "DueOutcome"),
        # Their converters compare them when they are made.
        *("BatchState", "TargetState", "StopCause"),
    }


# --- any value of every message, there and back -----------------------------------------------------------------------


def build(model: type[Model], **strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Values of a model. Not by `st.builds`, which sees the names of JSON in the model's signature."""
    return st.fixed_dictionaries(strategies).map(lambda values: model(**values))


IDENTIFIERS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True)
TIMES = st.datetimes(timezones=st.just(UTC))
DURATIONS = st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=36_500))
DIGESTS = st.binary(max_size=32).map(bytes.hex)
NUMBERS = st.integers(0, 2**63 - 1)
COUNTS = st.integers(0, 2**32 - 1)
INT32 = st.integers(-(2**31), 2**31 - 1)
FLOATS = st.floats(0, 1e9)
TEXTS = st.lists(TEXT, max_size=3).map(tuple)
LIMITS = build(
    ResourceLimits,
    memory=st.none() | st.integers(2**20, 2**53 - 1),
    swap=st.none() | st.integers(0, 2**53 - 1),
    cpus=st.none() | st.floats(0.01, 4096),
    cpu_weight=st.none() | st.integers(1, 10_000),
    pids=st.none() | st.integers(1, 4_000_000),
    io_read=st.none() | st.integers(4096, 2**53 - 1),
    io_write=st.none() | st.integers(4096, 2**53 - 1),
    open_files=st.none() | st.integers(16, 2**20),
    oom_group=st.none() | st.booleans(),
)
USAGES = build(
    ResourceUsage,
    cpu_seconds=st.none() | FLOATS,
    **dict.fromkeys(["peak_memory", "peak_pids", "io_read", "io_written", "oom_kills"], st.none() | NUMBERS),
)
KILLS = build(
    KillReceipt,
    empty=st.booleans(),
    whole=st.booleans(),
    signals=st.lists(st.integers(1, 64), max_size=8).map(tuple),
    survivors=st.lists(st.integers(1, 2**31 - 1), max_size=32).map(tuple),
)
SUMMARIES = build(OutputSummary, total_bytes=NUMBERS, sha256=DIGESTS, truncated=st.booleans())
STATES = st.sampled_from(ExecState)
RESPONSES = build(
    ExecResponse, id=IDENTIFIERS, agent_id=IDENTIFIERS, state=STATES, exit_code=INT32, signal=INT32,
    stdout=st.binary(max_size=30), stderr=st.binary(max_size=30), stdout_summary=SUMMARIES, stderr_summary=SUMMARIES,
    start_time=st.none() | TIMES, end_time=st.none() | TIMES, duration=DURATIONS, error=TEXT,
    cancelled=st.booleans(), usage=USAGES, kill=st.none() | KILLS,
)  # fmt: skip
TRANSITIONS = build(ExecTransition, state=STATES, time=TIMES)
STATUSES = build(
    ExecStatus, id=IDENTIFIERS, agent_id=IDENTIFIERS, state=STATES, command=TEXTS, requested_by=TEXT,
    request_time=TIMES, start_time=st.none() | TIMES, end_time=st.none() | TIMES, exit_code=INT32, error=TEXT,
    policy_applied=TEXT, cancel_requested_by=TEXT, timeout=DURATIONS, user=TEXT, work_dir=TEXT,
    history=st.lists(TRANSITIONS, max_size=3).map(tuple), deadline=st.none() | TIMES, approvers=TEXTS,
    approved_by=TEXT, approval_reason=TEXT,
)  # fmt: skip
OUTPUTS = st.one_of(
    build(
        ExecOutput, id=IDENTIFIERS, kind=st.sampled_from([OutputKind.STDOUT, OutputKind.STDERR]), seq=NUMBERS,
        time=st.none() | TIMES, data=st.binary(max_size=30),
    ),
    build(ExecOutput, id=IDENTIFIERS, kind=st.just(OutputKind.GAP), seq=NUMBERS, missing_bytes=NUMBERS),
    build(ExecOutput, id=IDENTIFIERS, kind=st.just(OutputKind.STATUS), seq=NUMBERS, status=STATUSES),
    build(ExecOutput, id=IDENTIFIERS, kind=st.just(OutputKind.RESULT), seq=NUMBERS, result=RESPONSES),
)  # fmt: skip
APPROVALS = build(
    Approval, status=STATUSES, request=REQUESTS, digest=st.binary(min_size=32, max_size=32).map(bytes.hex),
    policy=TEXT, limits=LIMITS,
)  # fmt: skip
TRUSTS = build(AgentTrust, spiffe_id=TEXT, expires=TIMES, root=DIGESTS, bundle=st.lists(DIGESTS, max_size=3).map(tuple))
AGENTS = build(
    AgentInfo, id=IDENTIFIERS, online=st.booleans(), last_seen=st.none() | TIMES, version=TEXT, hostname=TEXT,
    labels=st.dictionaries(TEXT, TEXT, max_size=3),
    reported_labels=st.dictionaries(TEXT, TEXT, max_size=3), running=COUNTS, slots=COUNTS, queued=COUNTS, load=FLOATS,
    memory_used=FLOATS, disk_used=FLOATS, warnings=TEXTS, isolation=TEXTS,
    draining=st.booleans(), drained_by=TEXT, drain_reason=TEXT,
    trust=st.none() | TRUSTS, revoked=st.booleans(), revoked_by=TEXT, revoke_reason=TEXT,
)  # fmt: skip
ENROLMENTS = build(Enrolment, agent_id=IDENTIFIERS, token=TEXT, expires=TIMES)
REVOCATIONS = build(Revocation, agent_id=IDENTIFIERS, cancelled=COUNTS, lost=COUNTS, warnings=TEXTS)
POLICY_STATUSES = build(PolicyStatus, digest=DIGESTS, policies=COUNTS, since=TIMES, error=TEXT, host=TEXT, path=TEXT)
AUDITED_REQUESTS = build(
    AuditedRequest, command=st.lists(TEXT, min_size=1, max_size=3).map(tuple), work_dir=TEXT, environment=TEXTS,
    timeout=st.none() | FLOATS, user=TEXT, interactive=st.booleans(), tty=st.booleans(), stdin_bytes=NUMBERS,
)  # fmt: skip
EVENTS = build(
    ExecAuditLog, cursor=TEXT, seq=NUMBERS, time=TIMES, event=st.from_regex(r"[a-z_]{1,64}", fullmatch=True), id=TEXT,
    agent_id=TEXT, requested_by=TEXT, command=TEXT, exit_code=INT32, start_time=st.none() | TIMES, duration=DURATIONS,
    client_ip=TEXT, authorized=st.booleans(), policy_applied=TEXT, reason=TEXT, actor=TEXT, rule=TEXT,
    request=st.none() | AUDITED_REQUESTS, command_hmac=DIGESTS, evidence_sha256=DIGESTS,
)  # fmt: skip
RUNS = build(
    ScheduledRun, due=TIMES, time=TIMES, outcome=st.sampled_from(DueOutcome), id=TEXT, agent_id=TEXT,
    state=st.none() | STATES, batch_state=st.none() | st.sampled_from(BatchState), reason=TEXT,
    count=st.integers(1, 2**63 - 1), first=st.none() | TIMES, requested_by=TEXT,
)  # fmt: skip
SCHEDULES = build(
    ScheduleStatus, name=IDENTIFIERS, when=TEXT, agent_id=st.just("") | IDENTIFIERS, targets=TEXTS,
    command=TEXTS, enabled=st.booleans(), missed=st.sampled_from(Missed), overlap=st.sampled_from(Overlap),
    paused=st.booleans(), paused_by=TEXT,
    paused_at=st.none() | TIMES, pause_reason=TEXT, next_due=st.none() | TIMES, last=st.none() | RUNS,
)  # fmt: skip
#: Values of every model that travels by itself; the other models are part of these.
VALUES: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "request": (REQUESTS, wire.request_to_pb, wire.request_from_pb),
    "response": (RESPONSES, wire.response_to_pb, wire.response_from_pb),
    "status": (STATUSES, wire.status_to_pb, wire.status_from_pb),
    "output": (OUTPUTS, wire.output_to_pb, wire.output_from_pb),
    "cancel": (
        build(CancelResponse, outcome=st.sampled_from(CancelOutcome), status=STATUSES),
        wire.cancel_to_pb,
        wire.cancel_from_pb,
    ),
    "approval": (APPROVALS, wire.approval_to_pb, wire.approval_from_pb),
    "agent": (AGENTS, wire.agent_to_pb, wire.agent_from_pb),
    "revocation": (REVOCATIONS, wire.revocation_to_pb, wire.revocation_from_pb),
    "policy status": (POLICY_STATUSES, wire.policy_status_to_pb, wire.policy_status_from_pb),
    "audit event": (EVENTS, wire.audit_to_pb, wire.audit_from_pb),
    "scheduled run": (RUNS, wire.scheduled_run_to_pb, wire.scheduled_run_from_pb),
    "schedule": (SCHEDULES, wire.schedule_to_pb, wire.schedule_from_pb),
}


@pytest.mark.parametrize("name", VALUES)
@given(data=st.data())
def test_any_value_arrives_as_it_was_sent(name: str, data: st.DataObject) -> None:
    values, to_pb, from_pb = VALUES[name]
    value = data.draw(values)
    assert from_pb(over_the_wire(to_pb(value))) == value


@given(ENROLMENTS)
def test_any_enrolment_arrives_as_it_was_sent(enrolment: Enrolment) -> None:
    message = over_the_wire(wire.enrolment_to_pb(enrolment))
    assert wire.enrolment_from_pb(enrolment.agent_id, message) == enrolment


@given(st.lists(STATES))
def test_any_states_arrive_as_they_were_sent(states: list[ExecState]) -> None:
    message = over_the_wire(pb.ListRequest(states=wire.states_to_pb(states)))
    assert wire.states_from_pb(message.states) == set(states)


@pytest.mark.parametrize("number", [0, 99, -1])
def test_a_state_that_is_none_is_refused(number: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"^states: {number} is no ExecState"):
        wire.states_from_pb([number])


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (wire.status_from_pb, pb.ExecStatus(id="e", agent_id="a", state=99)),  # type: ignore[arg-type]
        (wire.status_from_pb, pb.ExecStatus(id="../e", agent_id="a", state=pb.EXEC_STATE_QUEUED)),
        (
            wire.status_from_pb,
            pb.ExecStatus(id="e", agent_id="a", state=pb.EXEC_STATE_QUEUED, history=[pb.ExecTransition()]),
        ),
        (
            wire.response_from_pb,
            pb.ExecResponse(id="e", agent_id="a", state=pb.EXEC_STATE_FAILED, end_time=Timestamp(seconds=2**62)),
        ),
        (wire.output_from_pb, pb.ExecOutput(id="e", result=pb.ExecResponse())),
        (wire.output_from_pb, pb.ExecOutput(id="", stdout=b"x")),
        (wire.agent_from_pb, pb.Agent(id="")),
    ],
)
def test_an_answer_that_cannot_be_read_is_an_error_of_ours(read: Callable[[Any], Any], message: Any) -> None:
    with pytest.raises(ServerError, match="cannot read"):
        read(over_the_wire(message))
