"""The ledger beside a model of it: whatever happens in whatever order, the real scripts and the model say the same.

The model is plain Python without Redis, time or scripts. Hypothesis interleaves what orchestrators, agents, approvers
and reapers do with a handful of executions. After each step all that the scripts keep is compared: outcome, state,
history, audit events, queues, claims, indexes and what counts for limits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from books import discrepancies
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tachikoma.identity.signed_messages import OutputDigest, Receipt
from tachikoma.redis import keys
from tachikoma.redis.access import connect
from tachikoma.vocabulary.policies import RateLimitConfig
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.results import KillReceipt
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.executions.transitions import FENCE, Admission, Dispatch
from tachikoma_orchestrator.store import lua

T = TypeVar("T")

IDS = ("one", "two", "three", "four", "five", "six")
AGENTS = ("web-1", "web-2")
ALICE = "spiffe://tachikoma.local/user/alice"
BOB = "spiffe://tachikoma.local/user/bob"
QUEUE_SIZE = 3
APPROVALS_SIZE = 2
#: Small enough that each is reached. An example takes less than the minute of the rate.
LIMITS = {"by:alice": RateLimitConfig(requests_per_minute=5, concurrent_limit=3, queue_size=2)}
RETENTION = timedelta(hours=1)

PENDING, QUEUED, STARTED = ExecState.PENDING_APPROVAL, ExecState.QUEUED, ExecState.STARTED
#: What agents report; that nobody started it in time only the orchestrator says.
ENDS = tuple(state for state in ExecState if state.terminal and state is not ExecState.EXPIRED)
OPEN = (QUEUED, STARTED)

ids = st.sampled_from(IDS)
agents = st.sampled_from(AGENTS)
seldom = st.sampled_from((False,) * 7 + (True,))
#: Which execution, mostly one that has not ended; and whether its agent is taken for the other one.
targets = st.tuples(st.integers(0, len(IDS) - 1), seldom, seldom)
Target = tuple[int, bool, bool]


@dataclass
class Execution:
    """One execution of the model."""

    agent: str
    digest: str
    history: list[ExecState]
    limited: bool
    dispatched: bool = False

    @property
    def state(self) -> ExecState:
        return self.history[-1]


@dataclass
class Model:
    """What the ledger promises, without any of how it does it."""

    online: set[str] = field(default_factory=set)
    known: set[str] = field(default_factory=set)
    executions: dict[str, Execution] = field(default_factory=dict)
    events: list[tuple[str, str]] = field(default_factory=list)
    queues: dict[str, list[str]] = field(default_factory=lambda: {agent: [] for agent in AGENTS})
    claims: dict[str, str] = field(default_factory=dict)
    accepted: int = 0

    def counted(self, *states: ExecState) -> set[str]:
        """Executions under limits that are in one of the states."""
        return {name for name, execution in self.executions.items() if execution.limited and execution.state in states}

    def waiting_for_approval(self) -> set[str]:
        return {name for name, execution in self.executions.items() if execution.state is PENDING}

    def admit(self, name: str, agent: str, digest: str, *, parked: bool, limited: bool) -> str:
        there = self.executions.get(name)
        if there is not None and there.digest == digest:
            return "DUPLICATE"
        outcome = self._refusal(there, agent, parked=parked, limited=limited)
        if outcome:
            code = "refused" if outcome in ("CONFLICT", "UNKNOWN", "OFFLINE") else "limited"
            self.events.append((code, name))
            return outcome
        self.executions[name] = Execution(agent, digest, [PENDING if parked else QUEUED], limited)
        self.events.append(("approval_requested" if parked else "admitted", name))
        self.accepted += limited
        return "ADMITTED"

    def _refusal(self, there: Execution | None, agent: str, *, parked: bool, limited: bool) -> str:
        if there is not None:
            return "CONFLICT"
        if agent not in self.online:
            return "OFFLINE" if agent in self.known else "UNKNOWN"
        if len(self.queues[agent]) >= QUEUE_SIZE:
            return "FULL"
        if parked and len(self.waiting_for_approval()) >= APPROVALS_SIZE:
            return "APPROVALS"
        limit = LIMITS["by:alice"]
        if limited and self.accepted >= limit.requests_per_minute:
            return "RATE"
        if limited and len(self.counted(PENDING, QUEUED, STARTED)) >= limit.concurrent_limit:
            return "CONCURRENT"
        if limited and len(self.counted(PENDING, QUEUED)) >= limit.queue_size:
            return "WAITING"
        return ""

    def dispatch(self, name: str, digest: str) -> None:
        """Put an order on the queue: once, of the request that waits for it."""
        execution = self.executions.get(name)
        if execution is None or execution.digest != digest or execution.state is not QUEUED or execution.dispatched:
            return
        execution.dispatched = True
        self.queues[execution.agent].insert(0, name)
        self.events.append(("dispatched", name))

    def move(
        self, name: str, agent: str, sources: tuple[ExecState, ...], to: ExecState, code: str = "", *,
        order_of: str = "", fence: bool = False, ran: bool = False,
    ) -> str:  # fmt: skip
        """Change a state, or say why not."""
        execution = self.executions.get(name)
        if execution is None or execution.agent != agent:
            return "MISSING"
        if execution.state not in sources:
            return "STATE"
        if order_of and not (execution.dispatched and order_of == name):
            return "ORDER"
        if fence and self.claims.setdefault(name, FENCE) != FENCE:
            return "CLAIMED"
        if ran and execution.state is QUEUED:
            execution.history.append(STARTED)
            self.events.append(("started", name))
        execution.history.append(to)
        self.events.append((code or to.lower(), name))
        return "DONE"

    def claim(self, name: str, boot: str) -> bool:
        return self.claims.setdefault(name, boot) == boot


class LedgerMachine(RuleBasedStateMachine):
    """Does everything to both."""

    def __init__(self, redis_url: str) -> None:
        super().__init__()
        self.model = Model()
        self._runner = asyncio.Runner()
        self.redis = connect(redis_url, name="test")
        self.do(self.redis.flushall())
        # To a Redis without them they are given when they are first used, and what was admitted before that is then
        # called a repetition.
        for script in ("admit", "dispatch", "transition"):
            self.do(self.redis.script_load(lua.load(script)))
        trail = AuditTrail(self.redis)
        # Of two orchestrators; which one does something makes no difference.
        self.ledgers = [
            Ledger(
                self.redis, trail, queue_size=QUEUE_SIZE, approvals_size=APPROVALS_SIZE,
                retention=RETENTION, durable=False,
            )
            for _ in range(2)
        ]  # fmt: skip
        self._turn = 0

    def do(self, action: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(action)

    def find(self, target: Target) -> tuple[str, str]:
        """Name and agent of an execution."""
        number, any_state, other_agent = target
        going_on = [name for name, execution in self.model.executions.items() if not execution.state.terminal]
        candidates = IDS if any_state or not going_on else going_on
        name = candidates[number % len(candidates)]
        execution = self.model.executions.get(name)
        agent = AGENTS[0] if execution is None else execution.agent
        return name, next(item for item in AGENTS if (item != agent) is other_agent)

    @property
    def ledger(self) -> Ledger:
        self._turn += 1
        return self.ledgers[self._turn % 2]

    def teardown(self) -> None:
        self.do(self.redis.aclose())
        self._runner.close()

    # --- agents come and go -------------------------------------------------------------------------------------------

    @initialize(alone=seldom)
    def join_at_first(self, alone: bool) -> None:
        for agent in AGENTS[: 1 if alone else 2]:
            self.come_or_go(agent, leave=False)

    @rule(agent=agents, leave=seldom)
    def come_or_go(self, agent: str, leave: bool) -> None:
        if leave:
            self.do(self.redis.delete(keys.info(agent)))
            self.model.online.discard(agent)
            return
        self.do(self.redis.set(keys.info(agent), "{}"))
        self.do(self.redis.hset(keys.AGENTS, agent, "{}"))
        self.model.online.add(agent)
        self.model.known.add(agent)

    # --- requests -----------------------------------------------------------------------------------------------------

    @rule(name=ids, elsewhere=seldom, parked=st.booleans(), unlimited=seldom, dies_between=seldom)
    def admit(self, name: str, elsewhere: bool, parked: bool, unlimited: bool, dies_between: bool) -> None:
        """A request, new or repeated. Between its admission and its dispatch the orchestrator may die."""
        agent = AGENTS[(IDS.index(name) + elsewhere) % len(AGENTS)]
        digest = f"{name} on {agent}"
        admission = Admission(
            request=ExecRequest(id=name, agent_id=agent, command=("/bin/true",), requested_by=ALICE, timeout="5m"),
            shown=("/bin/true",),
            digest=digest,
            policy="web@1",
            client_ip="192.0.2.7",
            wait=timedelta(minutes=10),
            timeout=timedelta(minutes=5),
            scopes={} if unlimited else LIMITS,
            parked="signed" if parked else "",
            approvers=(BOB,) if parked else (),
        )
        dispatch = None if parked or dies_between else self._dispatch(name, agent)
        outcome, _ = self.do(self.ledger.admit(admission, dispatch))
        assert outcome == self.model.admit(name, agent, digest, parked=parked, limited=not unlimited)
        if dispatch is not None:
            self.model.dispatch(name, digest)

    @staticmethod
    def _dispatch(name: str, agent: str) -> Dispatch:
        return Dispatch(
            digest=f"{name} on {agent}", order_sha256=f"order of {name}", policy="web@1", message=name.encode()
        )

    @precondition(lambda self: self.model.executions)
    @rule(which=targets)
    def approve(self, which: Target) -> None:
        name, agent = self.find(which)
        dispatch = self._dispatch(name, agent)
        outcome = self.do(
            self.ledger.approve(
                agent, name, dispatch, wait=timedelta(minutes=10), by=BOB, reason="looks right", digest="ab" * 32
            )
        )
        assert outcome == self.model.move(name, agent, (PENDING,), QUEUED, "approved")
        self.model.dispatch(name, dispatch.digest)

    # --- an agent -----------------------------------------------------------------------------------------------------

    @rule(agent=agents, lost=seldom, twice=seldom)
    def take(self, agent: str, lost: bool, twice: bool) -> None:
        """The oldest order leaves the queue; it may get lost, or be delivered a second time."""
        taken = self.do(self.redis.rpop(keys.queue(agent)))
        expected = self.model.queues[agent].pop() if self.model.queues[agent] else None
        assert taken == (None if expected is None else expected.encode())
        for _ in range(0 if expected is None or lost else 1 + twice):
            self._claim(agent, str(expected))

    def _claim(self, agent: str, name: str) -> None:
        key = keys.claim(agent, name)
        self.do(self.redis.set(key, "journal", nx=True, ex=1000))
        owned = self.do(self.redis.get(key)) == b"journal"
        assert owned == self.model.claim(name, "journal")

    @precondition(lambda self: self.model.executions)
    @rule(which=targets)
    def started(self, which: Target) -> None:
        """A notice of any agent; nobody can know of an order before there is one."""
        name, agent = self.find(which)
        if name in self.model.executions and not self.model.executions[name].dispatched:
            return
        done = self.do(self.ledger.started(agent, name, 1000))
        assert done == (self.model.move(name, agent, (QUEUED,), STARTED) == "DONE")

    @precondition(lambda self: self.model.executions)
    @rule(which=targets, other_order=seldom, state=st.sampled_from(ENDS), ran=st.booleans())
    def finish(self, which: Target, other_order: bool, state: ExecState, ran: bool) -> None:
        """A receipt, of whichever order."""
        name, agent = self.find(which)
        order_of = IDS[(IDS.index(name) + other_order) % len(IDS)]
        outcome = self.do(self.ledger.complete(agent, name, _receipt(agent, name, order_of, state, ran), "token"))
        assert outcome == self.model.move(name, agent, OPEN, state, order_of=order_of, ran=ran)

    # --- those who end what has not ended -----------------------------------------------------------------------------

    @precondition(lambda self: self.model.executions)
    @rule(which=targets, to=st.sampled_from((ExecState.REJECTED, ExecState.CANCELLED, ExecState.EXPIRED)))
    def end_before_an_approval(self, which: Target, to: ExecState) -> None:
        self._settle(which, (PENDING,), to, fence=False)

    @precondition(lambda self: self.model.executions)
    @rule(which=targets, to=st.sampled_from((ExecState.CANCELLED, ExecState.EXPIRED)))
    def end_before_the_start(self, which: Target, to: ExecState) -> None:
        self._settle(which, (QUEUED,), to, fence=True)

    @precondition(lambda self: self.model.executions)
    @rule(which=targets)
    def lose(self, which: Target) -> None:
        self._settle(which, OPEN, ExecState.LOST, fence=False)

    def _settle(self, which: Target, sources: tuple[ExecState, ...], to: ExecState, *, fence: bool) -> None:
        name, agent = self.find(which)
        outcome = self.do(self.ledger.settle(agent, name, sources, to, reason="so", by=BOB, fence=fence))
        assert outcome == self.model.move(name, agent, sources, to, fence=fence)

    @precondition(lambda self: self.model.executions)
    @rule(which=targets)
    def ask_for_cancel(self, which: Target) -> None:
        name, agent = self.find(which)
        outcome = self.do(self.ledger.request_cancel(agent, name, BOB))
        execution = self.model.executions.get(name)
        if execution is None or execution.agent != agent:
            assert outcome == "MISSING"
        elif execution.state not in OPEN:
            assert outcome == "STATE"
        else:
            assert outcome == "DONE"
            self.model.events.append(("cancel_requested", name))

    # --- what must hold after each step -------------------------------------------------------------------------------

    @invariant()
    def both_say_the_same(self) -> None:
        self.do(self._compare())
        for name, execution in self.model.executions.items():
            assert len(set(execution.history)) == len(execution.history)
            assert all(not state.terminal for state in execution.history[:-1])
            if execution.history[-2:] == [QUEUED, ExecState.EXPIRED]:
                # Nobody can start it any more.
                assert self.model.claims[name] == FENCE

    async def _compare(self) -> None:
        model, redis = self.model, self.redis
        records = {record.exec_id: record for record in await self.ledger.records(IDS)}
        trail = (await self.ledger.trail.read(after="", limit=10_000)).events
        assert {
            name: (record.agent, record.digest, [step.state for step in record.status().history], record.state)
            for name, record in records.items()
        } == {
            name: (execution.agent, execution.digest, execution.history, execution.state)
            for name, execution in model.executions.items()
        }
        assert [(event.event, event.id) for event in trail] == model.events
        assert discrepancies({name: await redis.hgetall(keys.execution(name)) for name in records}, trail) == []
        async with redis.pipeline(transaction=False) as pipe:
            for key in (
                keys.OPEN,
                keys.INDEX,
                *map(keys.agent_index, AGENTS),
                keys.APPROVALS,
                keys.scope("by:alice")[0],
            ):
                pipe.zrange(key, 0, -1)
            for key in keys.scope("by:alice")[1:]:
                pipe.smembers(key)
            for agent in AGENTS:
                pipe.lrange(keys.queue(agent), 0, -1)
            for name in IDS:
                pipe.mget(keys.claim(AGENTS[0], name), keys.claim(AGENTS[1], name), keys.parked(name))
                pipe.ttl(keys.execution(name))
            answers = iter(await pipe.execute())
        everybody = set(model.executions)
        of = {agent: {name for name in everybody if model.executions[name].agent == agent} for agent in AGENTS}
        going_on = {name for name in everybody if not model.executions[name].state.terminal}
        for expected in (going_on, everybody, *of.values(), model.waiting_for_approval()):
            assert {item.decode() for item in next(answers)} == expected
        assert len(next(answers)) == model.accepted
        for states in ((PENDING, QUEUED, STARTED), (PENDING, QUEUED)):
            assert {item.decode() for item in next(answers)} == model.counted(*states)
        for agent in AGENTS:
            assert [item.decode() for item in next(answers)] == model.queues[agent]
        for name in IDS:
            execution, (*claims, parked) = model.executions.get(name), next(answers)
            assert [item.decode() for item in claims if item] == ([model.claims[name]] if name in model.claims else [])
            assert (parked is not None) == (name in model.waiting_for_approval())
            # What has ended is kept for a while; nothing else goes away by itself.
            lives = -2 if execution is None else -1 if not execution.state.terminal else None
            ttl = next(answers)
            assert ttl == lives if lives is not None else 0 < ttl <= RETENTION.total_seconds()


def _receipt(agent: str, name: str, order_of: str, state: ExecState, ran: bool) -> Receipt:
    nothing = OutputDigest(total_bytes=0, sha256="ab" * 32, truncated=False, excerpt_sha256="ab" * 32)
    return Receipt(
        iss=f"spiffe://tachikoma.local/agent/{agent}", iat=1, jti=name, order_sha256=f"order of {order_of}",
        state=state, exit_code=0, signal=0, error="", executable="/bin/true", started_ms=1000 if ran else 0,
        ended_ms=2000, duration_us=1, chunks=0, stdout=nothing, stderr=nothing,
        kill=KillReceipt(empty=True, whole=True) if state in (ExecState.CANCELLED, ExecState.TIMED_OUT) else None,
    )  # fmt: skip


def test_whatever_happens_in_whatever_order_ledger_and_model_say_the_same(redis_url: str) -> None:
    run_state_machine_as_test(
        lambda: LedgerMachine(redis_url),
        # What fails is told as it is: to make it shorter takes longer than to read it.
        settings=settings(max_examples=30, stateful_step_count=60, phases=(Phase.generate,)),
    )
