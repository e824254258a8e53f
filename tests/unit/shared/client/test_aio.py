"""Each method of the client makes its call, with its arguments, and reads the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from authority import Authority
from tachikoma import AsyncClient, BatchRequest, ExecRequest, ExecState, InvalidRequest, Profile, Unavailable
from tachikoma.client import batch_wire, wire
from tachikoma.exec.v1 import remote_execution_pb2 as pb

NOW = datetime(2026, 1, 31, tzinfo=UTC)
STAMP = Timestamp(seconds=int(NOW.timestamp()))
REQUEST = ExecRequest(id="job-7", agent_id="web-1", command=("x",))
STATUS = pb.ExecStatus(id="job-7", agent_id="web-1", state=pb.EXEC_STATE_STARTED)
AGENT = pb.Agent(id="web-1")
RUN = pb.ScheduledRun(due=STAMP, time=STAMP, outcome=pb.DUE_OUTCOME_RUN, count=1)
SCHEDULE = pb.Schedule(name="nightly", agent_id="web-1", missed="skip", overlap="allow")
BATCH = BatchRequest(id="b-1", targets=("web-*",), command=("x",))
BATCH_STATUS = pb.BatchStatus(
    id="b-1", state=pb.BATCH_STATE_RUNNING, total=2, submit_time=STAMP,
    totals=[pb.TargetCount(state=pb.TARGET_STATE_PENDING, targets=2)],
)  # fmt: skip
#: For each method: its arguments, the message that the server gets, its answer, and what shows that it was read.
METHODS: dict[str, tuple[tuple[Any, ...], dict[str, Any], Any, Any, Any]] = {
    "execute": (
        (REQUEST,),
        {},
        wire.request_to_pb(REQUEST),
        pb.ExecResponse(id="job-7", agent_id="web-1", state=pb.EXEC_STATE_FAILED),
        lambda found: found.state == "FAILED",
    ),
    "submit": ((REQUEST,), {}, wire.request_to_pb(REQUEST), STATUS, lambda found: found.id == "job-7"),
    "cancel": (
        ("job-7",),
        {},
        pb.CancelRequest(id="job-7"),
        pb.CancelResponse(outcome=pb.CANCEL_OUTCOME_REQUESTED, status=STATUS),
        lambda found: found.outcome == "REQUESTED",
    ),
    "status": (("job-7",), {}, pb.StatusRequest(id="job-7"), pb.StatusResponse(status=STATUS), lambda found: found.id),
    "list_page": (
        ("web-1",),
        {
            "include_ended": True,
            "page_size": 5,
            "page_token": "t",
            "requested_by": "alice",
            "states": [ExecState.LOST],
            "agents": "role=web",
            "since": NOW,
            "until": NOW,
        },
        pb.ListRequest(
            agent_id="web-1",
            include_ended=True,
            page_size=5,
            page_token="t",
            requested_by="alice",
            states=[pb.EXEC_STATE_LOST],
            agents="role=web",
            since=STAMP,
            until=STAMP,
        ),
        pb.ListResponse(executions=[STATUS], next_page_token="n"),
        lambda found: (found[0][0].id, found[1]) == ("job-7", "n"),
    ),
    "approvals": (
        (),
        {},
        pb.ListApprovalsRequest(),
        pb.ListApprovalsResponse(executions=[STATUS]),
        lambda found: found[0].id,
    ),
    "approval": (
        ("job-7",),
        {},
        pb.GetApprovalRequest(id="job-7"),
        pb.Approval(status=STATUS, request=wire.request_to_pb(REQUEST), digest=bytes(32)),
        lambda found: found.digest == "00" * 32,
    ),
    "approve": (
        ("job-7", "ab" * 32, "why"),
        {},
        pb.ApproveRequest(id="job-7", digest=b"\xab" * 32, reason="why"),
        STATUS,
        lambda found: found.id,
    ),
    "reject": (("job-7", "why"), {}, pb.RejectRequest(id="job-7", reason="why"), STATUS, lambda found: found.id),
    "agents": (
        (),
        {},
        pb.ListAgentsRequest(),
        pb.ListAgentsResponse(agents=[AGENT]),
        lambda found: found[0].id == "web-1",
    ),
    "drain_agent": (
        ("web-1", "why"),
        {},
        pb.DrainAgentRequest(id="web-1", reason="why"),
        AGENT,
        lambda found: found.id,
    ),
    "resume_agent": (("web-1",), {}, pb.ResumeAgentRequest(id="web-1"), AGENT, lambda found: found.id),
    "label_agent": (
        ("web-1", {"role": "db"}),
        {"remove": ("site",)},
        pb.LabelAgentRequest(id="web-1", labels={"role": "db"}, remove=["site"]),
        AGENT,
        lambda found: found.id,
    ),
    "enroll_user": (
        ("ada", timedelta(seconds=90)),
        {},
        pb.EnrollUserRequest(name="ada", ttl=Duration(seconds=90)),
        pb.EnrollUserResponse(token="t", expires=STAMP),
        lambda found: (found.name, found.token) == ("ada", "t"),
    ),
    "users": (
        (),
        {},
        pb.ListUsersRequest(),
        pb.ListUsersResponse(users=[pb.User(name="ada", joined=STAMP)]),
        lambda found: [(item.name, item.joined) for item in found] == [("ada", NOW)],
    ),
    "revoke_user": (
        ("ada", "gone"),
        {},
        pb.RevokeUserRequest(name="ada", reason="gone"),
        pb.User(name="ada", revoked=True),
        lambda found: found.revoked,
    ),
    "enroll_agent": (
        ("web-1", timedelta(seconds=90)),
        {"labels": {"role": "db"}},
        pb.EnrollAgentRequest(id="web-1", ttl=Duration(seconds=90), labels={"role": "db"}),
        pb.EnrollAgentResponse(token="t", expires=STAMP),
        lambda found: (found.agent_id, found.token) == ("web-1", "t"),
    ),
    "revoke_agent": (
        ("web-1", "why"),
        {},
        pb.RevokeAgentRequest(id="web-1", reason="why"),
        pb.RevokeAgentResponse(id="web-1", lost=2),
        lambda found: found.lost == 2,
    ),
    "policy_status": (
        (),
        {},
        pb.GetPolicyStatusRequest(),
        pb.PolicyStatus(digest=b"\1", policies=3),
        lambda found: found.policies == 3,
    ),
    "audit": (
        (),
        {"after": "1-0", "limit": 9, "exec_id": "job-7"},
        pb.ListAuditEventsRequest(after="1-0", limit=9, id="job-7"),
        pb.ListAuditEventsResponse(events=[pb.AuditEvent(cursor="2-0", event="started")]),
        lambda found: found[0].cursor == "2-0",
    ),
    "schedules": (
        (),
        {},
        pb.ListSchedulesRequest(),
        pb.ListSchedulesResponse(schedules=[SCHEDULE], error="wrong"),
        lambda found: (found[0][0].name, found[1]) == ("nightly", "wrong"),
    ),
    "next_due_times": (
        ("nightly",),
        {"limit": 2},
        pb.NextDueTimesRequest(name="nightly", limit=2),
        pb.NextDueTimesResponse(due=[STAMP]),
        lambda found: found == (NOW,),
    ),
    "pause_schedule": (
        ("nightly", "why"),
        {},
        pb.PauseScheduleRequest(name="nightly", reason="why"),
        SCHEDULE,
        lambda found: found.name,
    ),
    "resume_schedule": (("nightly",), {}, pb.ResumeScheduleRequest(name="nightly"), SCHEDULE, lambda found: found.name),
    "run_schedule": (
        ("nightly",),
        {},
        pb.RunScheduleRequest(name="nightly"),
        RUN,
        lambda found: found.outcome == "RUN",
    ),
    "submit_batch": (
        (BATCH,),
        {},
        batch_wire.request_to_pb(BATCH),
        BATCH_STATUS,
        lambda found: found.totals == {"PENDING": 2},
    ),
    "preview_batch": (
        (BATCH,),
        {},
        batch_wire.request_to_pb(BATCH),
        pb.BatchPreview(digest=b"x", targets=[pb.PreviewedTarget(agent_id="web-1", state=pb.TARGET_STATE_DENIED)]),
        lambda found: found.targets[0].state == "DENIED",
    ),
    "batch": (("b-1",), {}, pb.GetBatchRequest(id="b-1"), BATCH_STATUS, lambda found: found.state == "RUNNING"),
    "batches": (
        (),
        {"limit": 4},
        pb.ListBatchesRequest(limit=4),
        pb.ListBatchesResponse(batches=[BATCH_STATUS]),
        lambda found: found[0].id == "b-1",
    ),
    "batch_approvals": (
        (),
        {},
        pb.ListBatchApprovalsRequest(),
        pb.ListBatchApprovalsResponse(batches=[BATCH_STATUS]),
        lambda found: found[0].id == "b-1",
    ),
    "batch_approval": (
        ("b-1",),
        {},
        pb.GetBatchApprovalRequest(id="b-1"),
        pb.BatchApproval(
            status=BATCH_STATUS,
            request=batch_wire.request_to_pb(BATCH),
            targets=["web-1"],
            digest=b"\x01",
            needs=[pb.ApprovalNeed(policy="free", targets=3, above=2, approvers=["**"])],
        ),
        lambda found: (found.targets, found.digest, found.needs[0].above) == (("web-1",), "01", 2),
    ),
    "approve_batch": (
        ("b-1", "01ff", "change 4711"),
        {},
        pb.ApproveBatchRequest(id="b-1", digest=b"\x01\xff", reason="change 4711"),
        BATCH_STATUS,
        lambda found: found.id == "b-1",
    ),
    "reject_batch": (
        ("b-1", "too many"),
        {},
        pb.RejectBatchRequest(id="b-1", reason="too many"),
        BATCH_STATUS,
        lambda found: found.id == "b-1",
    ),
    "cancel_batch": (("b-1",), {}, pb.CancelBatchRequest(id="b-1"), BATCH_STATUS, lambda found: found.id == "b-1"),
    "recordings": (
        (),
        {"exec_id": "job-7", "text": "needle", "agent_id": "web-1", "requested_by": "me", "until": NOW, "limit": 4},
        pb.ListRecordingsRequest(id="job-7", text="needle", agent_id="web-1", requested_by="me", until=STAMP, limit=4),
        pb.ListRecordingsResponse(recordings=[pb.Recording(id="job-7", start_time=STAMP, sha256=b"x")]),
        lambda found: (found[0].id, found[0].start_time) == ("job-7", NOW),
    ),
    "scheduled_runs": (
        ("nightly",),
        {"limit": 4},
        pb.ListScheduledRunsRequest(name="nightly", limit=4),
        pb.ListScheduledRunsResponse(runs=[RUN]),
        lambda found: found[0].due == NOW,
    ),
}
#: Methods whose second call could do something that the first did not.
NOT_REPEATED = {"approve", "reject", "approve_batch", "reject_batch", "enroll_agent", "enroll_user", "run_schedule"}
#: RPCs by the names of the methods, where these differ.
RPC_OF = {
    "list_page": "List",
    "approvals": "ListApprovals", "approval": "GetApproval", "agents": "ListAgents", "policy_status": "GetPolicyStatus",
    "users": "ListUsers",
    "audit": "ListAuditEvents", "schedules": "ListSchedules", "batch": "GetBatch", "batches": "ListBatches",
    "batch_approvals": "ListBatchApprovals", "batch_approval": "GetBatchApproval",
    "scheduled_runs": "ListScheduledRuns", "recordings": "ListRecordings",
}  # fmt: skip
#: RPCs without a method in this client, and why.
# Streams; see test_streams.py, test_interactive.py and test_batches.py, and end_to_end/test_recordings.py.
OTHERS = {"ExecuteStream", "Attach", "ExecuteInteractive", "WatchBatch", "ReadRecording"}
#: `membership/renewal.py` calls them.
RENEWALS = {"RenewAgent", "RenewIdentity"}


def rpc_of(method: str) -> str:
    return RPC_OF.get(method, method.title().replace("_", ""))


class Server:
    """A connection and a stub that answer each call as they are told, after some failures."""

    def __init__(self, answer: Any, failures: int = 0) -> None:
        self._answer = answer
        self._failures = failures
        self.calls: list[tuple[str, Any]] = []

    async def ready(self, subject: str = "") -> bool:
        return True

    def stub(self) -> Server:
        return self

    def error_of(self, error: object) -> Unavailable:
        return Unavailable("broken")

    async def close(self) -> None:
        pass

    def __getattr__(self, rpc: str) -> Any:
        async def call(message: Any) -> Any:
            self.calls.append((rpc, message))
            if len(self.calls) <= self._failures:
                raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())
            return self._answer

        return call


@pytest.fixture
async def client(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncClient]:
    monkeypatch.setattr("tachikoma.client.retry.BACKOFF_SECONDS", (1e-6, 1e-6))
    authority.write(tmp_path, "spiffe://tachikoma.local/user/alice")
    client = AsyncClient(Profile(address="127.0.0.1:1", server_name="x", identity=tmp_path))
    yield client
    await client.close()


async def call(client: AsyncClient, method: str, failures: int = 0) -> tuple[Server, Any]:
    positional, named, _, answer, _ = METHODS[method]
    server = Server(answer, failures)
    await client._connection.close()
    client._connection = server  # type: ignore[assignment]
    return server, await getattr(client, method)(*positional, **named)


@pytest.mark.parametrize("method", METHODS)
async def test_a_method_sends_its_arguments_and_reads_the_answer(client: AsyncClient, method: str) -> None:
    _, _, sent, _, read = METHODS[method]
    server, found = await call(client, method)
    assert server.calls == [(rpc_of(method), sent)]
    assert read(found)


@pytest.mark.parametrize("method", METHODS)
async def test_only_calls_that_may_run_twice_are_repeated(client: AsyncClient, method: str) -> None:
    if method in NOT_REPEATED:
        with pytest.raises(Unavailable):
            await call(client, method, failures=1)
    else:
        server, _ = await call(client, method, failures=2)
        assert len(server.calls) == 3


def test_every_rpc_has_a_method() -> None:
    rpcs = {method.name for method in pb.DESCRIPTOR.services_by_name["RemoteExecution"].methods}
    assert {rpc_of(method) for method in METHODS} | OTHERS | RENEWALS == rpcs


async def test_a_digest_that_is_none_is_refused_before_any_call(client: AsyncClient) -> None:
    with pytest.raises(InvalidRequest, match="'xyz' is no digest"):
        await client.approve("job-7", "xyz", "why")


async def test_a_client_is_a_context_manager_that_closes_its_connection(authority: Authority, tmp_path: Path) -> None:
    authority.write(tmp_path, "spiffe://tachikoma.local/user/alice")
    async with AsyncClient(Profile(address="127.0.0.1:1", server_name="x", identity=tmp_path)) as client:
        channel = client._connection._current_channel()
    assert channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
    assert client.spiffe_id == "spiffe://tachikoma.local/user/alice"


# --- searches of the audit trail --------------------------------------------------------------------------------------


class Searched(Server):
    """A server that answers one call after the other."""

    def __init__(self, *pages: pb.ListAuditEventsResponse) -> None:
        super().__init__(None)
        self._pages = list(pages)

    def __getattr__(self, rpc: str) -> Any:
        async def call(message: pb.ListAuditEventsRequest) -> pb.ListAuditEventsResponse:
            self.calls.append((rpc, message))
            return self._pages.pop(0)

        return call


def page(*numbers: int, further: str = "") -> pb.ListAuditEventsResponse:
    events = [pb.AuditEvent(cursor=f"{number}-0", event="started") for number in numbers]
    return pb.ListAuditEventsResponse(events=events, further=further)


@pytest.mark.parametrize(
    ("given", "pages", "found", "asked"),
    [
        ({}, [page(7, 8), page(5, 6)], ["7-0", "8-0"], [("", "", 0)]),
        (
            {"exec_id": "x"},
            [page(7, 8, further="6-0"), page(further="4-0"), page(3)],
            ["3-0", "7-0", "8-0"],
            [("", "", 0), ("", "6-0", 98), ("", "4-0", 98)],
        ),
        (
            {"exec_id": "x", "after": "1-0", "limit": 3},
            [page(2, further="5-0"), page(6, 7, further="7-0")],
            ["2-0", "6-0", "7-0"],
            [("1-0", "", 3), ("5-0", "", 2)],
        ),
        ({"exec_id": "x", "limit": 2}, [page(8, 9, further="8-0")], ["8-0", "9-0"], [("", "", 2)]),
        # Of all events, a page is what was asked for: the caller turns it.
        ({"after": "1-0", "limit": 9}, [page(2, further="2-0")], ["2-0"], [("1-0", "", 9)]),
    ],
)
async def test_a_search_of_the_audit_trail_goes_on_until_it_has_all(
    client: AsyncClient, given: dict[str, Any], pages: list[Any], found: list[str], asked: list[tuple[str, str, int]]
) -> None:
    await client._connection.close()
    client._connection = server = Searched(*pages)  # type: ignore[assignment]
    assert [event.cursor for event in await client.audit(**given)] == found
    assert [(sent.after, sent.before, sent.limit) for _, sent in server.calls] == asked
    assert {sent.id for _, sent in server.calls} == {given.get("exec_id", "")}


async def test_a_list_reads_pages_as_they_are_needed(client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: list[str] = []

    async def page(*_: object, page_token: str, **__: object) -> tuple[tuple[str, ...], str]:
        tokens.append(page_token)
        # A page may be empty and not be the last one.
        return {"": (("a", "b"), "2"), "2": ((), "3"), "3": (("c",), "")}[page_token]

    monkeypatch.setattr(client, "list_page", page)
    assert [item async for item in client.list("web-1", include_ended=True)] == ["a", "b", "c"]
    assert tokens == ["", "2", "3"]
    tokens.clear()
    async for _ in client.list():
        break
    assert tokens == [""]
