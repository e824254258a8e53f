"""Every path through the service leaves exactly its events."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import redis as redis_py
from support import plain_channel, prepare, publish_report, request, wait_until

from joining import joining_settings, try_join
from patience import PATIENCE_SECONDS
from tachikoma import (
    AgentDraining,
    AgentOffline,
    AgentUnknown,
    AlreadyExists,
    AuditCode,
    Client,
    ExecAuditLog,
    ExecRequest,
    ExecState,
    OutputAltered,
    PermissionDenied,
    RecordAltered,
    ResourceExhausted,
)
from tachikoma.client import wire
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.exec.v1.remote_execution_pb2_grpc import RemoteExecutionStub
from tachikoma.identity.join_token import JoinToken
from tachikoma.identity.spiffe import user_id
from tachikoma.redis import keys
from tachikoma.streams.frames import FIELD, STDOUT, Frame, entry_id
from tachikoma_orchestrator.audit.entries import parse

#: The agent whose worker is stopped and killed.
FRAGILE = "agent-2"

POLICY = """\
operators: ["{root}"]
policies:
  - name: everything
    subjects: ["{root}"]
    agents: ["**"]
    allowedCommands: ["/** ..."]
    allowInterpreters: true
    deniedCommands: [reboot]
    allowedUsers: ["*", root]
    hostAccess: true
    allowedWorkDirs: ["/nonexistent"]
    limits: {{memory: 64MiB}}
    killGrace: 1s
  - name: asked
    subjects: ["spiffe://tachikoma.local/user/asker"]
    agents: ["**"]
    allowedCommands: [/usr/bin/true]
    requireApproval: true
    approvalTimeout: 1m
    approvers: ["{root}"]
  - name: at-once
    subjects: ["spiffe://tachikoma.local/user/nobody-comes"]
    agents: ["**"]
    allowedCommands: [/usr/bin/true]
    requireApproval: true
    approvalTimeout: 100ms
    approvers: ["{root}"]
  - name: one
    subjects: ["spiffe://tachikoma.local/user/modest"]
    agents: ["**"]
    allowedCommands: [/usr/bin/true, "/usr/bin/sleep *"]
    rateLimit: {{concurrentLimit: 1}}
  - name: hasty
    subjects: ["spiffe://tachikoma.local/user/hasty"]
    agents: ["**"]
    allowedCommands: [/usr/bin/true]
    rateLimit: {{queueTimeout: 100ms}}
  - name: scheduled
    subjects: ["spiffe://tachikoma.local/schedule/*"]
    agents: ["**"]
    allowedCommands: [/usr/bin/true, /usr/bin/sleep 600]
"""
#: Due so seldom that nothing of it happens by itself while the tests run.
SCHEDULE, BUSY = "rare", "busy"
PERIOD_MS = 100 * 24 * 3600 * 1000
SCHEDULES = f"""\
schedules:
  - {{name: {SCHEDULE}, every: {PERIOD_MS}ms, agentId: agent-1, request: {{command: [/usr/bin/true]}}}}
  - name: {BUSY}
    every: {PERIOD_MS}ms
    agentId: agent-1
    request: {{command: [/usr/bin/sleep, "600"]}}
    missed: run-once
    overlap: skip
"""


class World:
    """A stack, and those who use it."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.root = Client(stack.profile())
        self.clients = {
            name: Client(stack.issue(user_id(TRUST_DOMAIN, name)))
            for name in ("asker", "nobody-comes", "modest", "hasty")
        }
        self.redis = redis_py.Redis(**stack.redis_admin)

    def close(self) -> None:
        for client in (self.root, *self.clients.values()):
            client.close()
        self.redis.close()

    def events(self, after: int = 0) -> list[ExecAuditLog]:
        """Events behind the one of a number, also those that have none."""
        found = [parse(entry) for entry in self.redis.xrange(keys.AUDIT)]
        behind = next((place for place, event in enumerate(found) if event.seq > after), len(found))
        while behind and not found[behind - 1].seq:
            behind -= 1
        return found[behind:]

    def state(self, exec_id: str, state: ExecState) -> None:
        wait_until(lambda: self.root.status(exec_id).state is state, f"it is {state}")

    def started(self, *command: str, agent_id: str = "agent-1") -> str:
        wanted = request(*command, agent_id=agent_id)
        self.root.submit(wanted)
        self.state(wanted.id, ExecState.STARTED)
        return wanted.id

    def parked(self, name: str = "asker") -> str:
        return self.clients[name].submit(request("true")).id


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[World]:
    data = prepare(tmp_path_factory.mktemp("audit"))
    environment = {
        "TACHIKOMA_SWEEP": "100ms", "TACHIKOMA_LEASE": "1s", "TACHIKOMA_SLOTS": "1",
        "TACHIKOMA_SCHEDULES": str(data / "schedules.yaml"),
    }  # fmt: skip
    environment |= joining_settings(data)
    (data / "schedules.yaml").write_text(SCHEDULES)
    stack = Stack(data, agents=2, redis_server=redis_server, environment=environment)
    (data / "policy.yaml").write_text(POLICY.format(root=stack.user))
    with stack:
        made = World(stack)
        wait_until(lambda: len(made.events()) == 3, "policy and agents are on the record")
        yield made
        made.close()


@dataclass(frozen=True)
class Way:
    """Something that happens, and the codes of all events that it leaves."""

    happen: Callable[[World], None]
    codes: tuple[str, ...]
    #: Whether some of them have no order: two processes wrote them.
    unordered: bool = False


WAYS: list[Way] = []


def leaves(*codes: str, unordered: bool = False) -> Callable[[Callable[[World], None]], Callable[[World], None]]:
    """Add a way to the table."""

    def add(happen: Callable[[World], None]) -> Callable[[World], None]:
        WAYS.append(Way(happen, codes, unordered))
        return happen

    return add


# --- ends -------------------------------------------------------------------------------------------------------------


@leaves("admitted", "dispatched", "started", "succeeded")
def success(world: World) -> None:
    assert world.root.execute(request("true")).state is ExecState.SUCCEEDED


@leaves("admitted", "dispatched", "started", "failed")
def failure(world: World) -> None:
    assert world.root.execute(request("false")).state is ExecState.FAILED


@leaves("admitted", "dispatched", "started", "timed_out")
def a_timeout(world: World) -> None:
    assert world.root.execute(request("sleep", "600", timeout=0.2)).state is ExecState.TIMED_OUT


@leaves("admitted", "dispatched", "started", "out_of_memory")
def too_much_memory(world: World) -> None:
    hog = "x = bytearray(10**9)"
    assert world.root.execute(request("python3", "-I", "-S", "-c", hog)).state is ExecState.OUT_OF_MEMORY


@leaves("admitted", "dispatched", "rejected")
def a_refusal_by_the_agent(world: World) -> None:
    assert world.root.execute(request("true", work_dir="/nonexistent")).state is ExecState.REJECTED


@leaves("admitted", "dispatched", "started", "cancel_requested", "cancelled")
def a_cancel(world: World) -> None:
    exec_id = world.started("sleep", "600")
    world.root.cancel(exec_id)
    world.state(exec_id, ExecState.CANCELLED)


@leaves("admitted", "dispatched", "started", "admitted", "dispatched", "cancelled", "cancel_requested", "cancelled")
def a_cancel_before_the_start(world: World) -> None:
    # It has one slot.
    blocker = world.started("sleep", "600")
    wanted = request("true")
    world.root.submit(wanted)
    world.root.cancel(wanted.id)
    world.root.cancel(blocker)
    world.state(blocker, ExecState.CANCELLED)


@leaves("admitted", "dispatched", "started", "admitted", "dispatched", "expired", "cancel_requested", "cancelled")
def a_queue_timeout(world: World) -> None:
    blocker = world.started("sleep", "600")
    assert world.clients["hasty"].execute(request("true")).state is ExecState.EXPIRED
    world.root.cancel(blocker)
    world.state(blocker, ExecState.CANCELLED)


@leaves(*("admitted", "dispatched", "started", "agent_left", "lost", "agent_joined", "late_receipt"), unordered=True)
def a_loss_and_a_receipt_that_comes_too_late(world: World) -> None:
    agent, go = world.stack.agents[FRAGILE], world.stack.data / "go"
    exec_id = world.started("sh", "-c", f"while [ ! -e {go} ]; do sleep 0.1; done", agent_id=FRAGILE)
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        go.touch()
        # As 15 s later, when its last heartbeat expires.
        world.redis.delete(keys.info(FRAGILE))
        world.state(exec_id, ExecState.LOST)
    finally:
        os.kill(agent.pid, signal.SIGCONT)


# --- approval ---------------------------------------------------------------------------------------------------------


@leaves("approval_requested", "approved", "dispatched", "started", "succeeded")
def an_approval(world: World) -> None:
    exec_id = world.parked()
    world.root.approve(exec_id, world.root.approval(exec_id).digest, "looks right")
    world.state(exec_id, ExecState.SUCCEEDED)


@leaves("approval_requested", "approval_refused", "rejected")
def a_rejection(world: World) -> None:
    exec_id = world.parked()
    with pytest.raises(PermissionDenied):
        world.clients["asker"].approve(exec_id, "0" * 64, "mine")
    world.root.reject(exec_id, "no")


@leaves("approval_requested", "expired")
def an_approval_that_nobody_gives(world: World) -> None:
    world.state(world.parked("nobody-comes"), ExecState.EXPIRED)


@leaves("approval_requested", "cancelled")
def a_withdrawal(world: World) -> None:
    world.clients["asker"].cancel(world.parked())


# --- refusals ---------------------------------------------------------------------------------------------------------


@leaves("denied")
def a_denied_command(world: World) -> None:
    with pytest.raises(PermissionDenied):
        world.root.execute(request("reboot"))


@leaves("denied")
def a_request_in_the_name_of_another(world: World) -> None:
    with pytest.raises(PermissionDenied):
        world.root.execute(request("true", requested_by="spiffe://tachikoma.local/user/asker"))


@leaves("admitted", "dispatched", "started", "limited", "cancel_requested", "cancelled")
def a_rate_limit(world: World) -> None:
    modest = world.clients["modest"]
    wanted = request("sleep", "600")
    modest.submit(wanted)
    world.state(wanted.id, ExecState.STARTED)
    with pytest.raises(ResourceExhausted):
        modest.submit(request("true"))
    modest.cancel(wanted.id)
    world.state(wanted.id, ExecState.CANCELLED)


@leaves("refused")
def an_unknown_agent(world: World) -> None:
    with pytest.raises(AgentUnknown):
        world.root.execute(request("true", agent_id="nobody"))


@leaves("admitted", "dispatched", "started", "succeeded", "refused")
def an_id_that_was_used(world: World) -> None:
    first = request("true")
    world.root.execute(first)
    # Again is nothing new; another one is.
    assert world.root.execute(first).state is ExecState.SUCCEEDED
    with pytest.raises(AlreadyExists):
        world.root.execute(request("false", id=first.id))


@leaves("malformed")
def no_valid_request(world: World) -> None:
    message = wire.request_to_pb(request("true"))
    message.command[:] = []
    with plain_channel(world.stack, world.stack.identity("user")) as channel, pytest.raises(grpc.RpcError):
        RemoteExecutionStub(channel).Execute(message, timeout=PATIENCE_SECONDS)


@leaves("identity_rejected")
def an_agent_that_calls(world: World) -> None:
    with plain_channel(world.stack, world.stack.identity("agent-1")) as channel, pytest.raises(grpc.RpcError):
        RemoteExecutionStub(channel).List(pb.ListRequest(), timeout=PATIENCE_SECONDS)


# --- what is not as it was signed -------------------------------------------------------------------------------------


@leaves("admitted", "dispatched", "started", "receipt_refused", "cancel_requested", "cancelled")
def a_receipt_that_nobody_signed(world: World) -> None:
    exec_id = world.started("sleep", "600")
    last = world.events()[-1].seq
    publish_report(world.redis, "agent-1", exec_id, "nonsense")
    wait_until(lambda: world.events(last), "it is refused")
    world.root.cancel(exec_id)
    world.state(exec_id, ExecState.CANCELLED)


@leaves("admitted", "dispatched", "started", "succeeded", "record_altered")
def an_end_that_nobody_signed(world: World) -> None:
    wanted = request("true")
    world.root.execute(wanted)
    receipt = world.redis.hget(keys.execution(wanted.id), "receipt")
    assert receipt is not None
    world.redis.hdel(keys.execution(wanted.id), "receipt")
    with pytest.raises(RecordAltered):
        world.root.status(wanted.id)
    world.redis.hset(keys.execution(wanted.id), "receipt", receipt)


@leaves("admitted", "dispatched", "started", "succeeded", "output_altered")
def an_output_that_nobody_signed(world: World) -> None:
    wanted = request("true")
    world.root.execute(wanted)
    world.redis.xadd(keys.output("agent-1", wanted.id), {"f": "no frame"}, id="1-0")
    with pytest.raises(OutputAltered):
        list(world.root.attach(wanted.id))


# --- the others -------------------------------------------------------------------------------------------------------


@leaves("policy_kept", "policy_changed")
def a_broken_edit(world: World) -> None:
    good = world.stack.policy.read_text()
    count = len(world.events())
    world.stack.policy.write_text("policies: [")
    wait_until(lambda: len(world.events()) > count, "the edit is on the record")
    world.stack.policy.write_text(good + "# edited\n")


@leaves("agent_drained", "refused", "agent_resumed", "agent_labelled")
def an_agent_that_is_drained_and_resumed(world: World) -> None:
    world.root.drain_agent(FRAGILE, "maintenance")
    with pytest.raises(AgentDraining):
        world.root.execute(request("true", agent_id=FRAGILE))
    world.root.resume_agent(FRAGILE)
    world.root.label_agent(FRAGILE, {"role": "web"})


@leaves("admitted", "dispatched", "started", "succeeded", "output_altered")
def output_that_somebody_changed(world: World) -> None:
    exec_id = world.root.execute(request("echo", "true")).id
    key = keys.output("agent-1", exec_id)
    world.redis.delete(key)
    world.redis.xadd(key, {FIELD: Frame(STDOUT, 1, 0, 1, b"lies\n").encode()}, id=entry_id(1))
    with pytest.raises(OutputAltered):
        list(world.root.attach(exec_id))


@leaves("trail_altered", "agent_drained", "agent_resumed")
def what_is_no_event(world: World) -> None:
    world.redis.xadd(keys.AUDIT, {"event": "succeeded", "seq": "many"})
    # The trail goes on behind it.
    a_drained_agent(world)


@leaves("agent_left", "refused", "agent_joined")
def an_agent_that_goes_and_comes(world: World) -> None:
    agent = world.stack.agents[FRAGILE]
    count = len(world.events())
    agent.stop()
    wait_until(lambda: len(world.events()) > count, "it has left")
    with pytest.raises(AgentOffline):
        world.root.execute(request("true", agent_id=FRAGILE))
    agent.start()


@leaves("agent_drained", "agent_resumed")
def a_drained_agent(world: World) -> None:
    world.root.drain_agent(FRAGILE, "repairs")
    world.root.resume_agent(FRAGILE)


@leaves("agent_enrolled", "join_refused", "join_accepted")
def a_host_that_joins(world: World) -> None:
    token = JoinToken.parse(world.root.enroll_agent("joins").token)
    with pytest.raises(grpc.RpcError):
        try_join(token, secret=b"guess")
    try_join(token)


@leaves("agent_enrolled", "agent_revoked", "notice_refused")
def an_agent_that_is_cut_off_and_speaks_on(world: World) -> None:
    world.root.enroll_agent("speaks")
    world.root.revoke_agent("speaks", "stolen")
    world.redis.publish(keys.events("speaks"), "{}")


# --- schedules --------------------------------------------------------------------------------------------------------


def last_looked_at_a_period_ago(world: World, name: str) -> None:
    """Let one scheduled time lie between the last look and the next."""
    seconds, micros = world.redis.time()
    ago = seconds * 1000 + micros // 1000 - PERIOD_MS
    world.redis.hset(keys.schedule(name), "cursor_ms", ago)


@leaves("schedule_run", "admitted", "dispatched", "started", "succeeded")
def a_schedule_that_is_run_by_hand(world: World) -> None:
    world.state(world.root.run_schedule(SCHEDULE).id, ExecState.SUCCEEDED)


@leaves("schedule_missed")
def a_due_time_at_which_nobody_was_there(world: World) -> None:
    # Whoever resumes a schedule looks at it first; that it was not paused leaves nothing.
    world.root.resume_schedule(SCHEDULE)
    last_looked_at_a_period_ago(world, SCHEDULE)
    world.root.resume_schedule(SCHEDULE)


@leaves(
    "schedule_run", "admitted", "dispatched", "started", "schedule_skipped", "cancel_requested", "cancelled"
)  # fmt: skip
def a_due_time_while_the_run_before_has_not_ended(world: World) -> None:
    exec_id = world.root.run_schedule(BUSY).id
    world.state(exec_id, ExecState.STARTED)
    last_looked_at_a_period_ago(world, BUSY)
    world.root.resume_schedule(BUSY)
    world.root.cancel(exec_id)
    world.state(exec_id, ExecState.CANCELLED)


@leaves("schedule_paused", "schedule_resumed")
def a_pause(world: World) -> None:
    world.root.pause_schedule(SCHEDULE, "repairs")
    world.root.resume_schedule(SCHEDULE)


DECISIONS = {"admitted", "approval_requested", "denied", "limited", "refused"}
#: What policy grants may still be limited or have nowhere to go.
UNAUTHORIZED = {
    "denied", "malformed", "identity_rejected", "approval_refused", "join_refused", "notice_refused", "trail_altered",
}  # fmt: skip
REFUSALS = {*UNAUTHORIZED, "limited", "refused"}
ACTS = {
    *("approved", "approval_refused", "cancel_requested", "agent_enrolled", "join_accepted", "agent_revoked"),
    *("schedule_run", "schedule_paused", "schedule_resumed"),
}
#: Asks without an address.
SCHEDULE_IDS = tuple(f"spiffe://tachikoma.local/schedule/{name}" for name in (SCHEDULE, BUSY))
RECEIPTS = {"succeeded", "failed", "timed_out", "out_of_memory"}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.happen.__name__)
def test_a_way_leaves_exactly_its_events(world: World, way: Way) -> None:
    before = world.events()[-1].seq
    way.happen(world)
    wait_until(lambda: len(world.events(before)) >= len(way.codes), f"all of {way.codes} are on the record")
    events = world.events(before)
    codes = [event.event for event in events]
    if way.unordered:
        assert sorted(codes) == sorted(way.codes)
    else:
        assert tuple(codes) == way.codes
    for event in events:
        assert event.authorized == (event.event not in UNAUTHORIZED), event
        if event.id:
            assert event.agent_id, event
            assert event.requested_by.startswith(("spiffe://tachikoma.local/user/", *SCHEDULE_IDS)), event
        if event.event in DECISIONS:
            assert event.client_ip or event.requested_by in SCHEDULE_IDS, event
            assert event.request is not None, event
            assert len(event.command_hmac) == 64, event
        if event.event in ACTS:
            assert event.actor.startswith("spiffe://tachikoma.local/user/"), event
        if event.event in REFUSALS:
            assert event.reason, event
        if event.event in RECEIPTS:
            assert len(event.evidence_sha256) == 64, event


#: Codes that need ten minutes, or processes of their own; each has its test elsewhere.
ELSEWHERE = {
    # tests/integration/orchestrator/admission/test_admit.py
    "refusals_counted",
    # Two workers with one id.
    "agent_contested",
    # tests/faults/test_rollback.py: Redis goes back to an older state.
    "redis_life",
    "record_restored",
    # tests/security/test_people.py
    *("user_enrolled", "user_joined", "user_revoked"),
    # tests/integration/orchestrator/api/test_sessions.py
    *("session_opened", "session_attached", "session_detached", "session_resized", "session_signalled"),
    "session_closed",
    # tests/integration/orchestrator/api/test_observers.py
    *("session_observed", "session_unobserved"),
    # tests/integration/orchestrator/recordings/test_recorder.py
    *("recording_finished", "recording_failed", "recording_played", "recording_deleted"),
    # tests/integration/orchestrator/batches
    *(
        "batch_approved",
        "batch_rejected",
        "batch_submitted",
        "batch_wave",
        "batch_stopped",
        "batch_cancelled",
        "batch_expired",
        "batch_ended",
    ),
}


def test_no_code_is_left_out() -> None:
    assert {code for way in WAYS for code in way.codes} | ELSEWHERE == {str(code) for code in AuditCode}


def test_nothing_is_left_behind_when_all_is_quiet(world: World) -> None:
    """The last way may not have left a late event either."""
    last = world.events()[-1].seq
    wait_until(lambda: not world.redis.zcard(keys.OPEN), "everything has ended")
    done = world.root.execute(ExecRequest(agent_id="agent-1", command=("true",)))
    assert done.exit_code == 0
    assert [event.event for event in world.events(last)] == ["admitted", "dispatched", "started", "succeeded"]
