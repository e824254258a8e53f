"""The ledger's two scripts, on a real Redis."""

from __future__ import annotations

import asyncio
import json
import random
import shlex
from collections import Counter
from collections.abc import Coroutine
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ResponseError

import metric_values
from patience import PATIENCE_SECONDS
from relay import Relays
from tachikoma.errors import Unavailable
from tachikoma.identity.signed_messages import OutputDigest, Receipt
from tachikoma.policy.masking.redaction import redact
from tachikoma.redis import keys
from tachikoma.redis.access import connect
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.policies import RateLimitConfig
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.results import KillReceipt
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.audit.trail import AuditTrail, TrailBounds
from tachikoma_orchestrator.executions.final_state import FinalState
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.executions.record import Record
from tachikoma_orchestrator.executions.transitions import FENCE, Admission, Dispatch, Outcome

AGENT = "web-1"
ALICE = "spiffe://tachikoma.local/user/alice"
BOB = "spiffe://tachikoma.local/user/bob"
RETENTION = timedelta(hours=1)
APPROVED_ONCE = [(code, "job-7") for code in ("approval_requested", "approved", "dispatched")]
OPEN_STATES = [ExecState.QUEUED, ExecState.STARTED]


def admission(
    exec_id: str = "job-7", *, digest: str = "", scopes: dict[str, RateLimitConfig] | None = None, **values: Any
) -> Admission:
    request = ExecRequest(
        **{"id": exec_id, "agent_id": AGENT, "command": ["/bin/true"], "requested_by": ALICE, "timeout": "5m", **values}
    )
    return Admission(
        request=request,
        shown=redact(request.command),
        digest=digest or f"digest of {exec_id}",
        policy="web@0123456789ab",
        client_ip="192.0.2.7",
        wait=timedelta(minutes=10),
        timeout=request.timeout or timedelta(hours=1),
        scopes=scopes or {},
    )


def dispatch(wanted: Admission) -> Dispatch:
    exec_id = wanted.request.id
    return Dispatch(
        digest=wanted.digest,
        order_sha256=f"order of {exec_id}",
        policy=wanted.policy,
        message=b"message of %s, \0\xff unchanged" % exec_id.encode(),
    )


def receipt(exec_id: str = "job-7", **values: Any) -> Receipt:
    digest = OutputDigest(total_bytes=3, sha256="ab" * 32, truncated=False, excerpt_sha256="ab" * 32)
    defaults: dict[str, Any] = {
        "iss": f"spiffe://tachikoma.local/agent/{AGENT}",
        "iat": 1,
        "jti": exec_id,
        "order_sha256": f"order of {exec_id}",
        "state": ExecState.SUCCEEDED,
        "exit_code": 0,
        "signal": 0,
        "error": "",
        "executable": "/bin/true",
        "started_ms": 1_769_860_800_000,
        "ended_ms": 1_769_860_801_500,
        "duration_us": 1_500_000,
        "chunks": 2,
        "stdout": digest,
        "stderr": digest,
    }
    if values.get("state") in (ExecState.CANCELLED, ExecState.TIMED_OUT):
        defaults["kill"] = KillReceipt(empty=True, whole=True, signals=(15, 9))
    return Receipt(**{**defaults, **values})


async def admit(ledger: Ledger, wanted: Admission) -> Outcome:
    return (await ledger.admit(wanted, dispatch(wanted)))[0]


@pytest.fixture
def ledger(redis: Redis) -> Ledger:
    return make(redis, queue_size=3)


def make(redis: Redis, *, queue_size: int, durable: bool = False) -> Ledger:
    trail = AuditTrail(redis, key=b"k" * 32)
    return Ledger(redis, trail, queue_size=queue_size, approvals_size=3, retention=RETENTION, durable=durable)


async def online(redis: Redis, agent: str = AGENT) -> None:
    """As the agent's heartbeat and the orchestrator's registry leave it."""
    await redis.set(keys.info(agent), "{}")
    await redis.hset(keys.AGENTS, agent, "{}")


async def admitted(redis: Redis, ledger: Ledger, exec_id: str = "job-7", **values: Any) -> None:
    """An execution that waits on its agent's queue."""
    await online(redis)
    assert await admit(ledger, admission(exec_id, **values)) is Outcome.ADMITTED


async def read(ledger: Ledger, exec_id: str = "job-7") -> Record:
    record = await ledger.record(exec_id)
    assert record is not None
    return record


async def events(ledger: Ledger) -> list[tuple[str, str]]:
    """The audit trail: code and execution."""
    return [(event.event, event.id) for event in (await ledger.trail.read(after="", limit=1000, exec_id="")).events]


async def everything(redis: Redis) -> dict[bytes, Any]:
    """All of Redis, to see that nothing changed."""
    found: dict[bytes, Any] = {}
    for key in await redis.keys():
        # Not their dump: a read may move entries of a hash table that is being resized, which changes their order.
        kind = await redis.type(key)
        if kind == b"hash":
            found[key] = await redis.hgetall(key)
        elif kind == b"set":
            found[key] = await redis.smembers(key)
        else:
            found[key] = await redis.dump(key)
    return found


# --- admission --------------------------------------------------------------------------------------------------------


async def test_an_admitted_request_is_recorded_audited_indexed_and_queued_in_one_step(
    redis: Redis, ledger: Ledger
) -> None:
    await online(redis)
    assert await admit(ledger, admission()) is Outcome.ADMITTED
    assert await redis.lrange(keys.queue(AGENT), 0, -1) == [b"message of job-7, \0\xff unchanged"]
    record = await read(ledger)
    assert (record.state, record.agent, record.requested_by) == (ExecState.QUEUED, AGENT, ALICE)
    assert record.order_sha256 == "order of job-7"
    admitted_ms = record.admitted_ms
    assert record.deadline_ms - admitted_ms == 600_000
    assert abs(await ledger.now_ms() - admitted_ms) < 60_000
    assert await redis.zscore(keys.INDEX, "job-7") == admitted_ms
    assert await redis.zscore(keys.agent_index(AGENT), "job-7") == admitted_ms
    assert await redis.zscore(keys.OPEN, "job-7") == record.deadline_ms
    assert await redis.ttl(keys.execution("job-7")) == -1
    trail = (await ledger.trail.read(after="", limit=10, exec_id="job-7")).events
    assert [event.event for event in trail] == ["admitted", "dispatched"]
    for event in trail:
        assert (event.id, event.agent_id, event.requested_by) == ("job-7", AGENT, ALICE)
        assert (event.command, event.client_ip, event.policy_applied) == ("/bin/true", "192.0.2.7", "web@0123456789ab")
        assert event.authorized


async def test_an_admission_with_its_order_is_one_script(redis: Redis, ledger: Ledger) -> None:
    await admitted(redis, ledger, "known")
    await redis.config_resetstat()
    assert await admit(ledger, admission()) is Outcome.ADMITTED
    stats = await redis.info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] == 1
    # Both events get their numbers at once, and both steps know the time.
    assert (stats["cmdstat_incrby"]["calls"], stats["cmdstat_time"]["calls"], stats["cmdstat_hset"]["calls"]) == (
        1,
        1,
        1,
    )
    assert "cmdstat_multi" not in stats


async def test_a_repetition_sends_the_order_that_an_interrupted_admission_left(redis: Redis, ledger: Ledger) -> None:
    wanted = admission()
    await online(redis)
    # As after an admission that a disk or a replica had to confirm, and whose second step never came.
    assert (await ledger.admit(wanted, None))[0] is Outcome.ADMITTED
    assert await redis.llen(keys.queue(AGENT)) == 0
    for _ in range(2):
        assert await admit(ledger, wanted) is Outcome.DUPLICATE
        assert await redis.lrange(keys.queue(AGENT), 0, -1) == [b"message of job-7, \0\xff unchanged"]
    assert await events(ledger) == [("admitted", "job-7"), ("dispatched", "job-7")]
    assert (await read(ledger)).order_sha256 == "order of job-7"


@pytest.mark.parametrize("key", [keys.queue(AGENT), keys.AUDIT, keys.INDEX, keys.agent_index(AGENT), keys.OPEN])
async def test_a_key_of_another_type_leaves_no_part_of_an_admission(redis: Redis, ledger: Ledger, key: str) -> None:
    await online(redis)
    await redis.set(key, "of another type")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await admit(ledger, admission())
    assert not await redis.exists(keys.execution("job-7"))
    for other in {keys.queue(AGENT), keys.INDEX, keys.agent_index(AGENT), keys.OPEN} - {key}:
        assert not await redis.exists(other)


async def test_the_oldest_order_is_at_the_end_the_worker_takes_from(redis: Redis, ledger: Ledger) -> None:
    for name in ("first", "second"):
        await admitted(redis, ledger, name)
    assert (await redis.rpop(keys.queue(AGENT))).startswith(b"message of first")


async def test_the_same_request_again_is_the_same_execution_and_leaves_no_trace(redis: Redis, ledger: Ledger) -> None:
    await admitted(redis, ledger)
    before = await everything(redis)
    assert await admit(ledger, replace(admission(), policy="another@1")) is Outcome.DUPLICATE
    assert await everything(redis) == before


async def test_the_same_request_again_is_known_also_when_the_agent_has_gone_or_the_queue_is_full(
    redis: Redis, ledger: Ledger
) -> None:
    for name in ("a", "b", "c"):
        await admitted(redis, ledger, name)
    assert await admit(ledger, admission("a")) is Outcome.DUPLICATE
    await redis.delete(keys.info(AGENT))
    assert await admit(ledger, admission("a")) is Outcome.DUPLICATE


async def test_the_same_request_again_is_known_also_after_its_end(redis: Redis, ledger: Ledger) -> None:
    await admitted(redis, ledger)
    await ledger.complete(AGENT, "job-7", receipt(), "token")
    await redis.delete(keys.queue(AGENT))
    assert await admit(ledger, admission()) is Outcome.DUPLICATE
    assert await redis.llen(keys.queue(AGENT)) == 0


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome.CONFLICT, "refused"),
        (Outcome.UNKNOWN, "refused"),
        (Outcome.OFFLINE, "refused"),
        (Outcome.FULL, "limited"),
    ],
)
async def test_a_refused_request_is_on_the_record_and_nowhere_else(
    redis: Redis, ledger: Ledger, outcome: Outcome, code: str
) -> None:
    if outcome is not Outcome.UNKNOWN:
        await online(redis)
    if outcome is Outcome.CONFLICT:
        await admitted(redis, ledger, digest="another")
    if outcome is Outcome.OFFLINE:
        await redis.delete(keys.info(AGENT))
    if outcome is Outcome.FULL:
        for name in ("a", "b", "c"):
            await admitted(redis, ledger, name)
    before = await everything(redis)
    trail = await events(ledger)
    assert await admit(ledger, admission()) is outcome
    after = await everything(redis)
    assert {key for key in after if after[key] != before.get(key)} == {
        keys.AUDIT.encode(),
        keys.AUDIT_SEQ.encode(),
    }
    assert await events(ledger) == [*trail, (code, "job-7")]
    [event] = (await ledger.trail.read(after="", limit=100, exec_id="")).events[-1:]
    assert (event.reason, event.requested_by, event.agent_id) == (outcome, ALICE, AGENT)


async def test_a_conflict_does_not_touch_the_execution_it_conflicts_with(redis: Redis, ledger: Ledger) -> None:
    await admitted(redis, ledger)
    before = await redis.hgetall(keys.execution("job-7"))
    assert await admit(ledger, admission(digest="another", command=["/bin/false"])) is Outcome.CONFLICT
    assert await redis.hgetall(keys.execution("job-7")) == before
    assert await redis.llen(keys.queue(AGENT)) == 1


async def test_a_full_queue_has_room_again_when_an_order_is_taken(redis: Redis, ledger: Ledger) -> None:
    for name in ("a", "b", "c"):
        await admitted(redis, ledger, name)
    assert await admit(ledger, admission("d")) is Outcome.FULL
    await redis.rpop(keys.queue(AGENT))
    assert await admit(ledger, admission("d")) is Outcome.ADMITTED


async def test_a_full_queue_of_one_agent_is_not_that_of_another(redis: Redis, ledger: Ledger) -> None:
    for name in ("a", "b", "c"):
        await admitted(redis, ledger, name)
    await online(redis, "web-2")
    assert await admit(ledger, admission("d", agent_id="web-2")) is Outcome.ADMITTED


async def test_of_many_equal_requests_at_once_one_is_queued(redis: Redis, ledger: Ledger) -> None:
    await online(redis)
    outcomes = await asyncio.gather(*(admit(ledger, admission()) for _ in range(40)))
    assert sorted(outcomes) == [Outcome.ADMITTED, *[Outcome.DUPLICATE] * 39]
    assert await redis.llen(keys.queue(AGENT)) == 1
    assert await events(ledger) == [("admitted", "job-7"), ("dispatched", "job-7")]


async def test_of_many_different_requests_at_once_only_so_many_are_queued(redis: Redis, ledger: Ledger) -> None:
    await online(redis)
    outcomes = await asyncio.gather(*(admit(ledger, admission(f"job-{n}")) for n in range(40)))
    assert outcomes.count(Outcome.ADMITTED) == await redis.llen(keys.queue(AGENT)) == 3
    assert outcomes.count(Outcome.FULL) == 37


async def test_no_secret_of_the_request_stands_in_redis_beside_the_order(redis: Redis, ledger: Ledger) -> None:
    await admitted(
        redis, ledger, command=["app", "--password", "hunter2"], environment={"DB": "hunter2"}, stdin=b"hunter2"
    )
    kept = b"".join(
        [str(await redis.hgetall(keys.execution("job-7"))).encode(), str(await redis.xrange(keys.AUDIT)).encode()]
    )
    assert b"hunter2" not in kept
    status = (await read(ledger)).status()
    assert status.command == ("app", "--password", "***")
    assert json.loads((await read(ledger)).request)["environment"] == ["DB"]


async def test_a_refusal_by_policy_is_on_the_record(ledger: Ledger) -> None:
    request = admission(command=["/bin/sh", "-c", "id"]).request
    await ledger.trail.refuse(
        request,
        AuditCode.DENIED,
        policy="web@1",
        rule="allowedCommands",
        reason="no policy",
        client_ip="::1",
        shown=("/bin/sh", "-c", "id"),
    )
    [event] = (await ledger.trail.read(after="", limit=10, exec_id="")).events
    assert (event.event, event.id, event.reason, event.client_ip) == ("denied", "job-7", "no policy", "::1")
    assert event.command == "/bin/sh -c id"
    assert not event.authorized
    assert await ledger.record("job-7") is None


async def test_the_trail_is_numbered_without_a_hole(ledger: Ledger, redis: Redis) -> None:
    await online(redis)
    await asyncio.gather(*(admit(ledger, admission(f"job-{n}")) for n in range(20)))
    await ledger.trail.append(AuditCode.POLICY_CHANGED, reason="x")
    await ledger.started(AGENT, "job-1", 1)
    trail = (await ledger.trail.read(after="", limit=1000)).events
    assert [event.seq for event in trail] == list(range(1, len(trail) + 1))


async def test_an_event_keeps_what_was_asked_for_and_nothing_secret(ledger: Ledger, redis: Redis) -> None:
    await online(redis)
    values = {"command": ["/bin/app", "--token", "hunter2"], "environment": {"DB": "hunter2"}, "stdin": b"hunter2"}
    for name in ("a", "b"):
        await admit(ledger, admission(name, user="app", work_dir="/srv", **values))
    first, _, second, _ = (await ledger.trail.read(after="", limit=10)).events
    assert first.request is not None
    assert (first.request.command, first.request.environment) == (("/bin/app", "--token", "***"), ("DB",))
    assert (first.request.user, first.request.work_dir, first.request.stdin_bytes) == ("app", "/srv", 7)
    assert first.command_hmac == second.command_hmac
    # The same line of words is not the same argv.
    await admit(ledger, admission("c", command=["/bin/app", "--token *"]))
    assert first.command_hmac != (await ledger.trail.read(after="", limit=2)).events[0].command_hmac
    assert "hunter2" not in str(await redis.xrange(keys.AUDIT))


async def test_without_a_key_there_is_no_hmac(ledger: Ledger, redis: Redis) -> None:
    trail = AuditTrail(redis)
    await trail.refuse(admission().request, AuditCode.DENIED, policy="", reason="", client_ip="", shown=("x",))
    assert [event.command_hmac for event in (await trail.read(after="", limit=1)).events] == [""]


# --- approval ---------------------------------------------------------------------------------------------------------


async def park(ledger: Ledger, exec_id: str = "job-7", **values: Any) -> Outcome:
    wanted = replace(
        admission(exec_id, **values), parked=f"request of {exec_id}", approvers=(BOB,), wait=timedelta(hours=2)
    )
    return (await ledger.admit(wanted, None))[0]


async def approve(ledger: Ledger, exec_id: str = "job-7") -> str:
    wait = timedelta(minutes=3)
    order = dispatch(admission(exec_id))
    return await ledger.approve(AGENT, exec_id, order, wait=wait, by=BOB, reason="why not", digest="ab" * 32)


async def test_what_needs_an_approval_waits_and_is_on_no_queue(redis: Redis, ledger: Ledger) -> None:
    await online(redis)
    assert await park(ledger) is Outcome.ADMITTED
    assert await park(ledger) is Outcome.DUPLICATE
    assert await redis.llen(keys.queue(AGENT)) == 0
    assert await ledger.parked("job-7") == "request of job-7"
    record = await read(ledger)
    status = record.status()
    assert (status.state, status.approvers) == (ExecState.PENDING_APPROVAL, (BOB,))
    assert record.deadline_ms - record.admitted_ms == 7_200_000
    assert [found.exec_id for found in await ledger.approvals()] == ["job-7"]
    assert await events(ledger) == [("approval_requested", "job-7")]


async def test_an_approval_queues_it_once(redis: Redis, ledger: Ledger) -> None:
    await online(redis)
    await park(ledger)
    assert sorted(await asyncio.gather(*(approve(ledger) for _ in range(8)))) == ["DONE", *["STATE"] * 7]
    assert await redis.lrange(keys.queue(AGENT), 0, -1) == [b"message of job-7, \0\xff unchanged"]
    record = await read(ledger)
    assert (record.state, record.order_sha256) == (ExecState.QUEUED, "order of job-7")
    status = record.status()
    assert (status.approved_by, status.approval_reason) == (BOB, "why not")
    assert abs(record.deadline_ms - await ledger.now_ms() - 180_000) < 60_000
    assert await redis.zscore(keys.OPEN, "job-7") == record.deadline_ms
    assert await ledger.approvals() == []
    assert await ledger.parked("job-7") is None
    assert await events(ledger) == APPROVED_ONCE
    event = (await ledger.trail.read(after="", limit=2)).events[0]
    assert (event.actor, event.reason, event.evidence_sha256) == (BOB, "why not", "ab" * 32)


@pytest.mark.parametrize("approved", [False, True])
async def test_the_time_on_the_queue_is_from_admission_or_approval_to_the_start(
    redis: Redis, ledger: Ledger, approved: bool
) -> None:
    await online(redis)
    if approved:
        await park(ledger)
        # The wait for the approval does not count.
        await redis.hset(keys.execution("job-7"), "admitted_ms", 5)
        assert await approve(ledger) == "DONE"
        history = (await redis.hget(keys.execution("job-7"), "history")).decode()
        queued_ms = int(history.rpartition("QUEUED ")[2])
    else:
        await admitted(redis, ledger)
        queued_ms = (await read(ledger)).admitted_ms
    names = ("tachikoma_queue_seconds_count", "tachikoma_queue_seconds_sum")
    before = [metric_values.value(name) for name in names]
    # The agent's own notice of the start may have come before.
    assert await ledger.started(AGENT, "job-7", queued_ms + 2000)
    assert [metric_values.value(name) for name in names] == before
    assert await ledger.complete(AGENT, "job-7", receipt(started_ms=queued_ms + 2000), "token") == "DONE"
    assert [metric_values.value(name) for name in names] == [before[0] + 1, pytest.approx(before[1] + 2)]


@pytest.mark.parametrize("to", [ExecState.REJECTED, ExecState.EXPIRED, ExecState.CANCELLED])
async def test_what_ends_without_an_approval_leaves_nothing_and_can_not_be_approved(
    redis: Redis, ledger: Ledger, to: ExecState
) -> None:
    await online(redis)
    await park(ledger, scopes=limits(concurrent_limit=1, queue_size=1))
    assert await park(ledger, "job-8", scopes=limits(concurrent_limit=1)) is Outcome.CONCURRENT
    outcome = await ledger.settle(
        AGENT, "job-7", [ExecState.PENDING_APPROVAL], to, reason="no", by=BOB if to is not ExecState.EXPIRED else "",
        fence=False,
    )  # fmt: skip
    assert outcome == "DONE"
    assert await approve(ledger) == "STATE"
    assert await redis.llen(keys.queue(AGENT)) == 0
    assert await ledger.parked("job-7") is None
    assert await ledger.approvals() == []
    assert (await read(ledger)).state is to
    assert await park(ledger, "job-8", scopes=limits(concurrent_limit=1)) is Outcome.ADMITTED


async def test_only_so_many_wait_for_an_approval(redis: Redis, ledger: Ledger) -> None:
    await online(redis)
    outcomes = [await park(ledger, f"job-{number}") for number in range(4)]
    assert outcomes == [*[Outcome.ADMITTED] * 3, Outcome.APPROVALS]
    assert (await events(ledger))[-1] == ("limited", "job-3")
    # What needs none goes on.
    assert await admit(ledger, admission("other")) is Outcome.ADMITTED


async def test_an_approval_tells_whoever_waits(redis: Redis, subscriptions: Redis, ledger: Ledger) -> None:
    await online(redis)
    await park(ledger)
    pubsub = subscriptions.pubsub()
    await pubsub.subscribe(keys.APPROVED)
    try:
        assert (await pubsub.get_message(timeout=PATIENCE_SECONDS))["type"] == "subscribe"
        await approve(ledger)
        assert (await pubsub.get_message(timeout=PATIENCE_SECONDS))["data"] == b"job-7"
    finally:
        await pubsub.aclose()


# --- dispatch ---------------------------------------------------------------------------------------------------------


async def test_an_order_is_queued_once_and_only_for_the_request_it_is_for(redis: Redis, ledger: Ledger) -> None:
    await online(redis)
    wanted = admission()
    # As where the orchestrator died between the two.
    assert (await ledger.admit(wanted, None))[0] is Outcome.ADMITTED
    assert await redis.llen(keys.queue(AGENT)) == 0
    other = replace(wanted, digest="another")
    assert (await ledger.admit(other, dispatch(other)))[0] is Outcome.CONFLICT
    assert await redis.llen(keys.queue(AGENT)) == 0
    for _ in range(2):
        assert (await ledger.admit(wanted, dispatch(wanted)))[0] is Outcome.DUPLICATE
        assert await redis.llen(keys.queue(AGENT)) == 1
    await ledger.complete(AGENT, "job-7", receipt(), "token")
    assert (await ledger.admit(wanted, dispatch(wanted)))[0] is Outcome.DUPLICATE
    assert await redis.llen(keys.queue(AGENT)) == 1


async def test_scripts_that_redis_forgot_are_given_to_it_again(redis: Redis, ledger: Ledger) -> None:
    await online(redis)
    for name in ("a", "b"):
        await redis.script_flush()
        assert await admit(ledger, admission(name)) is Outcome.ADMITTED
        await redis.script_flush()
        assert await ledger.started(AGENT, name, 1)
    assert await redis.llen(keys.queue(AGENT)) == 2


async def test_an_approval_counts_where_redis_knew_only_the_first_of_its_scripts(redis: Redis, ledger: Ledger) -> None:
    await online(redis)
    await park(ledger)
    await redis.script_flush()
    # Known from now on: what moves a state, and not what puts an order on a queue.
    assert await ledger.settle(AGENT, "none", [ExecState.QUEUED], ExecState.LOST, reason="", fence=False) == "MISSING"
    assert await approve(ledger) == "DONE"
    assert await redis.llen(keys.queue(AGENT)) == 1
    assert await events(ledger) == APPROVED_ONCE
    assert await approve(ledger) == "STATE"


async def test_a_change_whose_answer_was_lost_is_made_once_and_told_as_made(
    redis: Redis, redis_url: str, ledger: Ledger, tmp_path: Path
) -> None:
    """The connection breaks when Redis has done it and not yet said so; the client asks again by itself."""
    await online(redis)
    path = tmp_path / "r"
    relays = Relays()
    try:
        relays.add("it", path, Path(redis_url.removeprefix("unix://")))
        client = connect(f"unix://{path}", name="test-lossy")
        lossy = make(client, queue_size=3)

        async def lose_the_answer(name: bytes, change: Coroutine[Any, Any, str]) -> str:
            point = relays.hold("it", lambda command: command[0] == name, answer=True)
            task = asyncio.create_task(change)
            assert await asyncio.to_thread(point.reached.wait, 30)
            relays.lose("it", point)
            return await asyncio.wait_for(task, PATIENCE_SECONDS)

        # So that all scripts are known, and none is asked for twice for that.
        await admitted(redis, lossy, "job-1")
        await lossy.started(AGENT, "job-1", 1)
        await park(lossy)
        before = await events(ledger)
        assert await lose_the_answer(b"EXEC", approve(lossy)) == "DONE"
        assert await lose_the_answer(b"EVALSHA", lossy.request_cancel(AGENT, "job-7", ALICE)) == "DONE"
        end = lossy.settle(AGENT, "job-7", OPEN_STATES, ExecState.CANCELLED, reason="not needed", by=ALICE, fence=True)
        assert await lose_the_answer(b"EVALSHA", end) == "DONE"
        told = [(code, "job-7") for code in ("approved", "dispatched", "cancel_requested", "cancelled")]
        assert await events(ledger) == before + told
        assert await redis.llen(keys.queue(AGENT)) == 2
        # Somebody else's is another change.
        assert await approve(ledger) == "STATE"
        await client.aclose()
    finally:
        relays.close()


async def test_a_redis_that_cannot_tell_what_is_on_disk_is_not_trusted_with_it(redis: Redis) -> None:
    # The test server writes nothing to disk.
    await online(redis)
    with pytest.raises(Unavailable, match=r"cannot report when the audit trail is on disk .* TACHIKOMA_AUDIT_DURABLE"):
        await admit(make(redis, queue_size=3, durable=True), admission())
    assert await redis.llen(keys.queue(AGENT)) == 0
    assert not await redis.exists(keys.execution("job-7"))


async def test_an_order_is_queued_only_when_its_authorisation_is_on_disk(redis: Redis) -> None:
    ledger = make(redis, queue_size=3, durable=True)
    await online(redis)
    try:
        await redis.execute_command("WAITAOF", 0, 0, 1)
    except ResponseError:
        # Redis before 7.2 is refused, as one is that has no file to append to.
        with pytest.raises(Unavailable):
            await admit(ledger, admission())
        return
    # Nothing gets to disk until it is said so.
    await redis.config_set("appendfsync", "no")
    await redis.config_set("appendonly", "yes")
    try:
        admitting = asyncio.create_task(admit(ledger, admission()))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await redis.exists(keys.execution("job-7")):
                assert not admitting.done()
        assert [event.event for event in (await ledger.trail.read(after="", limit=10)).events] == ["admitted"]
        assert await redis.llen(keys.queue(AGENT)) == 0
        await redis.config_set("appendfsync", "always")
        await redis.set("anything", "1")
        assert await asyncio.wait_for(admitting, PATIENCE_SECONDS) is Outcome.ADMITTED
        assert await redis.llen(keys.queue(AGENT)) == 1
        # The same holds for an approval.
        await redis.config_set("appendfsync", "no")
        await park(ledger, "job-8")
        approving = asyncio.create_task(approve(ledger, "job-8"))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await read(ledger, "job-8")).state is ExecState.PENDING_APPROVAL:
                assert not approving.done()
        assert await redis.llen(keys.queue(AGENT)) == 1
        await redis.config_set("appendfsync", "always")
        await redis.set("anything", "1")
        assert await asyncio.wait_for(approving, PATIENCE_SECONDS) == "DONE"
        assert await redis.llen(keys.queue(AGENT)) == 2
    finally:
        await redis.config_set("appendonly", "no")


# --- transitions ------------------------------------------------------------------------------------------------------


async def test_a_start_moves_a_queued_execution_and_is_told_once(redis: Redis, ledger: Ledger) -> None:
    await admitted(redis, ledger)
    assert await ledger.started(AGENT, "job-7", 1_769_860_800_000) is True
    assert await ledger.started(AGENT, "job-7", 1) is False
    status = (await read(ledger)).status()
    assert status.state is ExecState.STARTED
    assert status.start_time == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert [step.state for step in status.history] == [ExecState.QUEUED, ExecState.STARTED]
    assert await events(ledger) == [("admitted", "job-7"), ("dispatched", "job-7"), ("started", "job-7")]


@pytest.mark.parametrize("started", [False, True])
async def test_a_receipt_ends_an_execution_whether_or_not_its_start_was_told(
    redis: Redis, ledger: Ledger, started: bool
) -> None:
    await admitted(redis, ledger)
    if started:
        await ledger.started(AGENT, "job-7", 1_769_860_800_000)
    assert await ledger.complete(AGENT, "job-7", receipt(state=ExecState.FAILED, exit_code=3), "token") == "DONE"
    record = await read(ledger)
    status = record.status()
    result = record.result()
    assert (status.state, status.exit_code) == (ExecState.FAILED, 3)
    assert (result.chunks, result.stdout_bytes, result.stderr_bytes) == (2, 3, 3)
    assert status.start_time == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert status.end_time == datetime(2026, 1, 31, 12, 0, 1, 500_000, tzinfo=UTC)
    assert record.result().duration_us == 1_500_000
    assert record.receipt == "token"
    [event] = (await ledger.trail.read(after="", limit=10, exec_id="job-7")).events[-1:]
    assert (event.event, event.exit_code, event.duration) == ("failed", 3, timedelta(seconds=1.5))


async def test_each_event_can_be_read_alone(redis: Redis, ledger: Ledger) -> None:
    await admitted(redis, ledger)
    await ledger.started(AGENT, "job-7", 1_769_860_800_000)
    await ledger.request_cancel(AGENT, "job-7", BOB)
    await ledger.complete(AGENT, "job-7", receipt(state=ExecState.CANCELLED), "token")
    trail = (await ledger.trail.read(after="", limit=10, exec_id="job-7")).events
    assert [event.event for event in trail] == ["admitted", "dispatched", "started", "cancel_requested", "cancelled"]
    for event in trail:
        assert (event.id, event.agent_id, event.requested_by) == ("job-7", AGENT, ALICE)
        assert (event.command, event.policy_applied, event.client_ip) == ("/bin/true", "web@0123456789ab", "192.0.2.7")
        assert event.authorized


@pytest.mark.parametrize("state", [state for state in ExecState if state.terminal])
async def test_every_end_leaves_the_set_of_open_ones_is_announced_and_kept_so_long(
    redis: Redis, subscriptions: Redis, ledger: Ledger, state: ExecState
) -> None:
    await admitted(redis, ledger)
    pubsub = subscriptions.pubsub()
    await pubsub.subscribe(keys.ENDED)
    try:
        assert (await pubsub.get_message(timeout=PATIENCE_SECONDS))["type"] == "subscribe"
        assert await ledger.complete(AGENT, "job-7", receipt(state=state), "token") == "DONE"
        assert (await pubsub.get_message(timeout=PATIENCE_SECONDS))["data"] == b"job-7"
    finally:
        await pubsub.aclose()
    assert await redis.zscore(keys.OPEN, "job-7") is None
    assert await redis.zscore(keys.INDEX, "job-7") is not None
    seconds = round(RETENTION.total_seconds())
    assert seconds - 60 < await redis.ttl(keys.execution("job-7")) <= seconds
    assert FinalState.without_receipt(await read(ledger)).response().cancelled == (state is ExecState.CANCELLED)


async def test_a_record_is_kept_without_bound_until_its_end(redis: Redis, ledger: Ledger) -> None:
    await admitted(redis, ledger)
    await ledger.started(AGENT, "job-7", 1)
    await ledger.request_cancel(AGENT, "job-7", ALICE)
    assert await redis.ttl(keys.execution("job-7")) == -1


async def test_an_agent_can_say_nothing_of_another_agents_execution(redis: Redis, ledger: Ledger) -> None:
    await admitted(redis, ledger)
    before = await everything(redis)
    assert not await ledger.started("web-2", "job-7", 1)
    assert await ledger.complete("web-2", "job-7", receipt(), "token") == "MISSING"
    assert await everything(redis) == before


async def test_a_receipt_that_comes_late_is_on_the_record_once(redis: Redis, ledger: Ledger) -> None:
    await admitted(redis, ledger)
    await ledger.settle(AGENT, "job-7", OPEN_STATES, ExecState.LOST, reason="nobody knows", fence=False)
    record = await read(ledger)
    # Two orchestrators hear of it.
    await asyncio.gather(*(ledger.audit_late(record, receipt(), "token") for _ in range(2)))
    assert [code for code, _ in await events(ledger)] == ["admitted", "dispatched", "lost", "late_receipt"]
    assert (await read(ledger)).state is ExecState.LOST


async def test_a_receipt_for_another_order_changes_nothing(redis: Redis, ledger: Ledger) -> None:
    await admitted(redis, ledger)
    before = await everything(redis)
    assert await ledger.complete(AGENT, "job-7", receipt(order_sha256="order of job-8"), "token") == "ORDER"
    assert await everything(redis) == before


async def test_what_does_not_exist_is_missing_and_stays_so(redis: Redis, ledger: Ledger) -> None:
    assert await ledger.started(AGENT, "job-7", 1) is False
    assert await ledger.complete(AGENT, "job-7", receipt(), "token") == "MISSING"
    assert await ledger.settle(AGENT, "job-7", OPEN_STATES, ExecState.LOST, reason="x", fence=True) == "MISSING"
    assert await ledger.request_cancel(AGENT, "job-7", ALICE) == "MISSING"
    assert await redis.keys() == []


async def test_a_fence_in_time_ends_an_execution_that_can_then_never_start(redis: Redis, ledger: Ledger) -> None:
    await admitted(redis, ledger)
    outcome = await ledger.settle(
        AGENT, "job-7", [ExecState.QUEUED], ExecState.CANCELLED, reason="cancelled", by=BOB, fence=True
    )
    assert outcome == "DONE"
    assert await redis.get(keys.claim(AGENT, "job-7")) == FENCE.encode()
    assert await redis.ttl(keys.claim(AGENT, "job-7")) > 0
    # What an agent's claim would come to now:
    assert await redis.set(keys.claim(AGENT, "job-7"), "boot-1", nx=True) is None
    status = (await read(ledger)).status()
    assert (status.state, status.error, status.cancel_requested_by) == (ExecState.CANCELLED, "cancelled", BOB)
    [event] = (await ledger.trail.read(after="", limit=10, exec_id="job-7")).events[-1:]
    assert (event.event, event.requested_by) == ("cancelled", ALICE)
    assert (event.actor, event.reason) == (BOB, "cancelled")


async def test_a_fence_that_comes_too_late_changes_nothing(redis: Redis, ledger: Ledger) -> None:
    await admitted(redis, ledger)
    await redis.set(keys.claim(AGENT, "job-7"), "boot-1")
    before = await everything(redis)
    outcome = await ledger.settle(AGENT, "job-7", [ExecState.QUEUED], ExecState.EXPIRED, reason="late", fence=True)
    assert outcome == "CLAIMED"
    assert await everything(redis) == before


async def test_a_fence_that_stands_already_is_a_fence(redis: Redis, ledger: Ledger) -> None:
    """As after an orchestrator that died between two steps, or a repeated command."""
    await admitted(redis, ledger)
    await redis.set(keys.claim(AGENT, "job-7"), FENCE)
    outcome = await ledger.settle(AGENT, "job-7", [ExecState.QUEUED], ExecState.EXPIRED, reason="", fence=True)
    assert outcome == "DONE"


async def test_no_fence_is_put_up_for_an_execution_in_another_state(redis: Redis, ledger: Ledger) -> None:
    await admitted(redis, ledger)
    await ledger.started(AGENT, "job-7", 1)
    outcome = await ledger.settle(AGENT, "job-7", [ExecState.QUEUED], ExecState.EXPIRED, reason="", fence=True)
    assert outcome == "STATE"
    assert not await redis.exists(keys.claim(AGENT, "job-7"))


async def test_of_fence_and_claim_exactly_one_wins(redis: Redis, ledger: Ledger) -> None:
    await online(redis)
    for number in range(20):
        name = f"job-{number}"
        await redis.delete(keys.queue(AGENT))
        await admit(ledger, admission(name))

        async def agent(name: str = name) -> bool:
            return bool(await redis.set(keys.claim(AGENT, name), "boot-1", nx=True))

        async def reaper(name: str = name) -> bool:
            settled = await ledger.settle(AGENT, name, [ExecState.QUEUED], ExecState.EXPIRED, reason="", fence=True)
            return settled == "DONE"

        both = [agent(), reaper()] if number % 2 else [reaper(), agent()]
        assert (await asyncio.gather(*both)).count(True) == 1


async def test_a_cancel_request_is_noted_and_moves_nothing(redis: Redis, ledger: Ledger) -> None:
    await admitted(redis, ledger)
    await ledger.started(AGENT, "job-7", 1)
    assert await ledger.request_cancel(AGENT, "job-7", BOB) == "DONE"
    status = (await read(ledger)).status()
    assert (status.state, status.cancel_requested_by) == (ExecState.STARTED, BOB)
    assert [step.state for step in status.history] == [ExecState.QUEUED, ExecState.STARTED]
    assert (await events(ledger))[-1] == ("cancel_requested", "job-7")
    assert await redis.zscore(keys.OPEN, "job-7") is not None


async def test_only_the_states_named_are_left(redis: Redis, ledger: Ledger) -> None:
    await admitted(redis, ledger)
    assert await ledger.settle(AGENT, "job-7", [ExecState.STARTED], ExecState.LOST, reason="", fence=False) == "STATE"
    assert (await read(ledger)).state is ExecState.QUEUED
    assert await ledger.settle(AGENT, "job-7", OPEN_STATES, ExecState.LOST, reason="gone", fence=False) == "DONE"
    assert (await read(ledger)).state is ExecState.LOST


async def test_of_two_ends_at_once_exactly_one_counts(redis: Redis, ledger: Ledger) -> None:
    await admitted(redis, ledger)
    outcomes = await asyncio.gather(
        *(ledger.complete(AGENT, "job-7", receipt(), f"token {n}") for n in range(10)),
        *(ledger.settle(AGENT, "job-7", OPEN_STATES, ExecState.LOST, reason="", fence=False) for _ in range(10)),
    )
    assert outcomes.count("DONE") == 1
    assert outcomes.count("STATE") == 19
    codes = [code for code, _ in await events(ledger)]
    assert codes in (
        ["admitted", "dispatched", "lost"],
        ["admitted", "dispatched", "started", "succeeded"],
    )


@pytest.mark.parametrize("seed", range(6))
async def test_a_terminal_state_never_changes_whatever_comes(redis: Redis, ledger: Ledger, seed: int) -> None:
    """A walk through everything that can happen to an execution, also twice, late, and in the wrong order."""
    chance = random.Random(seed)
    await online(redis)
    ended: dict[str, tuple[Record, dict[bytes, bytes]]] = {}
    terminal = [state for state in ExecState if state.terminal]
    names = ["a", "b", "c"]
    for _ in range(150):
        name = chance.choice(names)
        step = chance.randrange(7)
        if step == 0:
            await admit(ledger, admission(name, digest=chance.choice(["one", "other"])))
        elif step == 1:
            await ledger.started(AGENT, name, chance.randrange(1, 10**12))
        elif step == 2:
            order = chance.choice([f"order of {name}"] * 3 + ["another"])
            signed = receipt(name, state=chance.choice(terminal), order_sha256=order)
            await ledger.complete(AGENT, name, signed, "token")
        elif step == 3:
            await ledger.settle(
                AGENT, name, chance.choice([OPEN_STATES, [ExecState.QUEUED], [ExecState.STARTED]]),
                chance.choice(terminal), reason="walk", by=chance.choice(["", ALICE]), fence=chance.random() < 0.5,
            )  # fmt: skip
        elif step == 4:
            await ledger.request_cancel(AGENT, name, ALICE)
        elif step == 5:
            await redis.set(keys.claim(AGENT, name), "boot-1", nx=True)
        else:
            await redis.delete(keys.queue(AGENT))
        for other in names:
            record = await ledger.record(other)
            if record is None:
                continue
            states = [item.state for item in record.status().history]
            assert states[-1] is record.state
            assert [item.terminal for item in states[:-1]] == [False] * (len(states) - 1)
            assert (await redis.zscore(keys.OPEN, other) is None) == record.state.terminal
            if other in ended:
                assert (record, await redis.hgetall(keys.execution(other))) == ended[other]
            elif record.state.terminal:
                ended[other] = (record, await redis.hgetall(keys.execution(other)))
    assert ended
    trail = await events(ledger)
    for name in ended:
        # One beginning and one end each.
        assert trail.count(("admitted", name)) == 1
        assert sum(event in {state.lower() for state in terminal} for event, owner in trail if owner == name) == 1


# --- reading ----------------------------------------------------------------------------------------------------------


async def test_records_come_in_the_order_asked_for_without_those_missing(redis: Redis, ledger: Ledger) -> None:
    for name in ("a", "b", "c"):
        await admitted(redis, ledger, name)
    found = await ledger.records(["c", "none", "a", "b"])
    assert [record.exec_id for record in found] == ["c", "a", "b"]
    assert await ledger.records([]) == []
    assert await ledger.record("none") is None


async def test_pages_of_the_newest_hold_each_execution_once(redis: Redis, ledger: Ledger) -> None:
    await online(redis)
    # Several in one millisecond, as in a burst.
    names = [f"job-{number:02d}" for number in range(25)]
    for number, name in enumerate(names):
        await redis.zadd(keys.INDEX, {name: 1000 + number // 4})
    seen: list[str] = []
    before: tuple[int, int] | None = None
    while page := await ledger.newest("", ended=True, before=before, limit=3):
        seen += [name for name, _ in page]
        score = page[-1][1]
        same = [name for name in seen if await redis.zscore(keys.INDEX, name) == score]
        before = (score, len(same))
    assert sorted(seen) == names
    scores = [await redis.zscore(keys.INDEX, name) for name in seen]
    assert scores == sorted(scores, reverse=True)


async def test_the_trail_can_be_read_on_from_any_event(redis: Redis, ledger: Ledger) -> None:
    for name in ("a", "b", "c"):
        await admitted(redis, ledger, name)
        await ledger.complete(AGENT, name, receipt(name), "token")
        await redis.delete(keys.queue(AGENT))
    whole = (await ledger.trail.read(after="", limit=100, exec_id="")).events
    assert [(event.event, event.id) for event in whole] == [
        (event, name) for name in ("a", "b", "c") for event in ("admitted", "dispatched", "started", "succeeded")
    ]
    for number, event in enumerate(whole):
        assert (await ledger.trail.read(after=event.cursor, limit=100, exec_id="")).events == whole[number + 1 :]
    assert (await ledger.trail.read(after="", limit=2, exec_id="")).events == whole[-2:]
    assert (await ledger.trail.read(after="", limit=100, exec_id="b")).events == whole[4:8]
    assert (await ledger.trail.read(after=whole[0].cursor, limit=1, exec_id="")).events == whole[1:2]


# --- retention --------------------------------------------------------------------------------------------------------


async def test_what_is_past_its_retention_is_let_go(redis: Redis, ledger: Ledger) -> None:
    await admitted(redis, ledger, "new")
    now = await ledger.now_ms()
    old = now - round(RETENTION.total_seconds() * 1000) - 60_000
    for index in (keys.INDEX, keys.agent_index(AGENT)):
        await redis.zadd(index, {"old": old, "younger": old + 120_000})
    # Trimming goes by whole nodes of the stream, so there must be several.
    async with redis.pipeline(transaction=False) as pipe:
        for number in range(500):
            pipe.xadd("other", {"seq": number + 1, "event": "old", "id": f"old-{number}"}, id=f"{old + number}-0")
        pipe.xadd("other", {"seq": 501, "event": "new", "id": "new"}, id=f"{now}-0")
        pipe.rename("other", keys.AUDIT)
        await pipe.execute()
    await ledger.trim(await ledger.now_ms())
    await ledger.trail.trim(await ledger.now_ms(), TrailBounds(RETENTION, 1_000_000, closed=False))
    for index in (keys.INDEX, keys.agent_index(AGENT)):
        assert set(await redis.zrange(index, 0, -1)) == {b"new", b"younger"}
    trail = await events(ledger)
    assert trail[-1] == ("new", "new")
    assert len(trail) <= 201
    assert await ledger.record("new") is not None
    assert await redis.zscore(keys.OPEN, "new") is not None


async def test_the_trail_is_bounded_in_number_as_well(redis: Redis, ledger: Ledger) -> None:
    now = await ledger.now_ms()
    async with redis.pipeline(transaction=False) as pipe:
        for number in range(1000):
            pipe.xadd(keys.AUDIT, {"seq": number + 1, "event": "e", "id": f"e-{number}"}, id=f"{now - 1000 + number}-0")
        await pipe.execute()
    await ledger.trail.trim(await ledger.now_ms(), TrailBounds(timedelta(days=1), 300, closed=False))
    trail = await events(ledger)
    assert 300 <= len(trail) <= 500
    assert trail[-1] == ("e", "e-999")


async def test_trimming_nothing_does_no_harm(redis: Redis, ledger: Ledger) -> None:
    await ledger.trail.trim(await ledger.now_ms(), TrailBounds(timedelta(days=1), 10, closed=False))
    assert await redis.keys() == []


# --- rate limits ------------------------------------------------------------------------------------------------------


def limits(**values: int) -> dict[str, RateLimitConfig]:
    return {"by:alice": RateLimitConfig(**values)}


async def counted(redis: Redis) -> list[int]:
    """How many of the scope are counted: accepted in the last minute, not ended, not started."""
    rate, open_ones, waiting = keys.scope("by:alice")
    return [await redis.zcard(rate), await redis.scard(open_ones), await redis.scard(waiting)]


async def test_so_many_are_accepted_in_a_minute_and_the_next_is_told_when(redis: Redis, ledger: Ledger) -> None:
    await online(redis)
    ledger._queue_size = 100
    for number in range(3):
        assert await admit(ledger, admission(f"a{number}", scopes=limits(requests_per_minute=3))) is Outcome.ADMITTED
    outcome, retry = await ledger.admit(
        wanted := admission("b", scopes=limits(requests_per_minute=3)), dispatch(wanted)
    )
    assert outcome is Outcome.RATE
    assert 0 < retry <= 60.001
    # Another scope, and no scope, count for themselves.
    assert await admit(ledger, admission("c", scopes={"by:bob": RateLimitConfig(requests_per_minute=1)})) == "ADMITTED"
    assert await admit(ledger, admission("d")) is Outcome.ADMITTED
    # The oldest becomes older than a minute.
    rate, _, _ = keys.scope("by:alice")
    await redis.zincrby(rate, -60_001, "a0")
    assert await admit(ledger, admission("e", scopes=limits(requests_per_minute=3))) is Outcome.ADMITTED
    assert await admit(ledger, admission("f", scopes=limits(requests_per_minute=3))) is Outcome.RATE


async def test_a_repetition_counts_once_and_a_refusal_not_at_all(redis: Redis, ledger: Ledger) -> None:
    await online(redis)
    first = admission("a", scopes=limits(requests_per_minute=1))
    assert await admit(ledger, first) is Outcome.ADMITTED
    assert await admit(ledger, first) is Outcome.DUPLICATE
    assert await admit(ledger, admission("b", scopes=limits(requests_per_minute=1))) is Outcome.RATE
    assert await counted(redis) == [1, 1, 1]


async def test_a_start_and_an_end_give_back_what_was_taken_once(redis: Redis, ledger: Ledger) -> None:
    await online(redis)
    both = limits(concurrent_limit=2, queue_size=1)
    assert await admit(ledger, admission("a", scopes=both)) is Outcome.ADMITTED
    assert await admit(ledger, admission("b", scopes=both)) is Outcome.WAITING
    assert await ledger.started(AGENT, "a", 1)
    assert await counted(redis) == [1, 1, 0]
    assert await admit(ledger, admission("b", scopes=both)) is Outcome.ADMITTED
    assert await ledger.started(AGENT, "b", 1)
    assert await admit(ledger, admission("c", scopes=both)) is Outcome.CONCURRENT
    for _ in range(2):
        await ledger.complete(AGENT, "a", receipt("a"), "token")
        assert await counted(redis) == [2, 1, 0]
    assert await admit(ledger, admission("c", scopes=both)) is Outcome.ADMITTED


@pytest.mark.parametrize("end", [ExecState.EXPIRED, ExecState.CANCELLED, ExecState.LOST])
async def test_every_end_gives_back(redis: Redis, ledger: Ledger, end: ExecState) -> None:
    await online(redis)
    assert await admit(ledger, admission("a", scopes=limits(concurrent_limit=1))) is Outcome.ADMITTED
    assert await ledger.settle(AGENT, "a", OPEN_STATES, end, reason="a test", fence=end is not ExecState.LOST) == "DONE"
    assert await counted(redis) == [1, 0, 0]


async def test_limits_are_exact_whoever_asks_at_once(redis_url: str, redis: Redis) -> None:
    """Several orchestrators, each with connections of its own."""
    await online(redis)
    clients = [connect(redis_url, name=f"orchestrator-{number}") for number in range(3)]
    ledgers = [make(client, queue_size=1000) for client in clients]
    try:
        outcomes = await asyncio.gather(
            *(
                admit(ledgers[number % 3], admission(f"job-{number}", scopes=limits(requests_per_minute=17)))
                for number in range(120)
            )
        )
        assert Counter(outcomes) == {Outcome.ADMITTED: 17, Outcome.RATE: 103}
        ends = [
            ledgers[number % 3].settle(AGENT, f"job-{number}", OPEN_STATES, ExecState.LOST, reason="x", fence=False)
            for number, outcome in enumerate(outcomes) if outcome is Outcome.ADMITTED
        ]  # fmt: skip
        await asyncio.gather(*ends)
        assert (await counted(redis))[1:] == [0, 0]
    finally:
        for client in clients:
            await client.aclose()


#: Requests that are larger in an event than a refused one may be.
LARGE_REQUESTS = {
    "long": {"command": ["x", *["a" * 256] * 63]},
    "not ASCII": {
        "command": ["x", *["ä" * 256] * 63], "environment": {f"APP_{n:03}_{'X' * 50}": "" for n in range(250)}
    },
    "quotes": {"command": ["x", "'" * 4000], "work_dir": "/" + "d" * 4000},
}  # fmt: skip


@pytest.mark.parametrize("outcome", [Outcome.UNKNOWN, Outcome.FULL, Outcome.CONFLICT])
@pytest.mark.parametrize("values", LARGE_REQUESTS.values(), ids=LARGE_REQUESTS)
async def test_the_event_of_a_refused_request_is_bounded(
    redis: Redis, outcome: Outcome, values: dict[str, Any]
) -> None:
    ledger = make(redis, queue_size=0 if outcome is Outcome.FULL else 3)
    if outcome is not Outcome.UNKNOWN:
        await online(redis)
    if outcome is Outcome.CONFLICT:
        await admitted(redis, ledger, digest="another request")
    assert await admit(ledger, admission(**values)) is outcome
    [(_, raw)] = await redis.xrevrange(keys.AUDIT, count=1)
    assert sum(map(len, raw.values())) < 6 * 1024
    [event] = (await ledger.trail.read(limit=1)).events
    assert event.request is not None
    assert (event.request.command[0], event.reason) == ("x", outcome)


@pytest.mark.parametrize("values", LARGE_REQUESTS.values(), ids=LARGE_REQUESTS)
async def test_the_event_of_an_admitted_request_is_whole(redis: Redis, ledger: Ledger, values: dict[str, Any]) -> None:
    wanted = admission(**values)
    await online(redis)
    assert await admit(ledger, wanted) is Outcome.ADMITTED
    event, _ = (await ledger.trail.read(limit=2)).events
    assert event.request is not None
    assert (event.request.command, event.command) == (wanted.shown, shlex.join(wanted.shown))
    assert event.request.environment == tuple(sorted(wanted.request.environment))
    assert event.request.work_dir == wanted.request.work_dir


async def test_final_states_without_a_receipt_are_recorded_again_after_a_loss(ledger: Ledger, redis: Redis) -> None:
    await admitted(redis, ledger)
    before = await redis.hgetall(keys.execution("job-7"))
    assert await ledger.settle(AGENT, "job-7", OPEN_STATES, ExecState.CANCELLED, reason="r", by=ALICE, fence=True)
    for _ in range(2):
        # Redis goes back to the state before; the second time nothing is lost.
        await redis.delete(keys.execution("job-7"), keys.claim(AGENT, "job-7"))
        for name, value in before.items():
            await redis.hset(keys.execution("job-7"), name, value)
        await ledger.write_again(redis)
        await ledger.write_again(redis)
        record = await ledger.record("job-7")
        assert record is not None
        assert (record.state, record.error, record.cancel_requested_by) == (ExecState.CANCELLED, "r", ALICE)
        assert await redis.get(keys.claim(AGENT, "job-7")) == FENCE.encode()


async def test_a_record_that_ended_without_a_receipt_is_written_again_if_all_of_it_was_lost(
    ledger: Ledger, redis: Redis
) -> None:
    await admitted(redis, ledger)
    assert await ledger.settle(AGENT, "job-7", OPEN_STATES, ExecState.CANCELLED, reason="r", by=ALICE, fence=True)
    before = await redis.hgetall(keys.execution("job-7"))
    seen = len(await redis.xrange(keys.AUDIT))
    await redis.delete(
        keys.execution("job-7"), keys.claim(AGENT, "job-7"), keys.INDEX, keys.agent_index(AGENT), keys.OPEN
    )
    for _ in range(2):
        await ledger.write_again(redis)
        assert await redis.hgetall(keys.execution("job-7")) == before
    assert await redis.get(keys.claim(AGENT, "job-7")) == FENCE.encode()
    assert await redis.ttl(keys.execution("job-7")) > 0
    assert await redis.zrange(keys.INDEX, 0, -1) == await redis.zrange(keys.agent_index(AGENT), 0, -1) == [b"job-7"]
    assert await redis.exists(keys.OPEN) == 0
    # The second time, nothing was lost.
    events = [fields for _, fields in await redis.xrange(keys.AUDIT)][seen:]
    assert [fields[b"event"] for fields in events] == [b"record_restored", b"cancelled"]
    assert all(fields[b"requested_by"] == ALICE.encode() for fields in events)
