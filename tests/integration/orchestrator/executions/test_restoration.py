"""Records that Redis lost, rebuilt from the orders that an agent retained; on a real Redis."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from admissions import AGENT, BOSS, Stand, peer
from tachikoma.errors import AlreadyExists
from tachikoma.identity.signed_messages import WorkOrder
from tachikoma.identity.signing import sign
from tachikoma.identity.signing import verify as verify_message
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.limits import WhenFull
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.executions import restoration as module
from tachikoma_orchestrator.executions.restoration import Restoration


class LivesOf:
    """A life of Redis that lost data, and whose number agents report as text."""

    valid_from = 2
    #: Long ago.
    lost_at: float | None = None

    def number_of(self, token: str) -> int:
        return int(token or 0)


class Restoring:
    def __init__(self, stand: Stand) -> None:
        self.folded: list[tuple[str, str, bytes]] = []
        self.lives = LivesOf()
        self.restoration = Restoration(
            stand.redis, stand.identity, self.lives, stand.admitter.shown, self.fold,  # type: ignore[arg-type]
        )  # fmt: skip

    async def fold(self, agent: str, exec_id: str, raw: bytes) -> bool:
        self.folded.append((agent, exec_id, raw))
        return True


@pytest.fixture
async def stand(redis: Redis, tmp_path: Path) -> Stand:
    return await Stand.make(redis, tmp_path)


async def lose(redis: Redis) -> None:
    """Let Redis lose everything but the agent."""
    agents = await redis.hgetall(keys.AGENTS)
    lease = await redis.get(keys.info(AGENT))
    assert lease is not None
    await redis.execute_command("FLUSHALL")
    for agent, entry in agents.items():
        await redis.hset(keys.AGENTS, agent, entry)
    await redis.set(keys.info(AGENT), lease)


async def show(redis: Redis, **orders: str) -> None:
    for name, token in orders.items():
        await redis.hset(keys.orders(AGENT), name.replace("_", "-"), token)


async def test_a_lost_record_is_rebuilt_from_its_order_with_its_result(stand: Stand) -> None:
    request = ExecRequest(id="job-1", agent_id=AGENT, command=("true", "x"))
    assert await stand.admitter.admit(request, peer())
    before, token = await stand.ledger.record("job-1"), await stand.token()
    assert before is not None
    await lose(stand.redis)
    await show(stand.redis, job_1=token)
    await stand.redis.set(keys.result(AGENT, "job-1"), "its result")
    restoring = Restoring(stand)
    for life in ("", "1"):
        # The agent has not written everything again yet.
        await restoring.restoration.heard(AGENT, life)
        assert await stand.ledger.record("job-1") is None
    await restoring.restoration.heard(AGENT, "2")
    after = await stand.ledger.record("job-1")
    assert after is not None
    assert after.state is ExecState.QUEUED
    assert after.order_sha256 == hashlib.sha256(token.encode()).hexdigest()
    for name in ("agent", "requested_by", "digest", "policy", "command", "client_ip", "request", "caller_ms"):
        assert getattr(after, name) == getattr(before, name), name
    assert after.status().command == ("true", "x")
    assert await stand.codes("job-1") == ["record_restored"]
    assert restoring.folded == [(AGENT, "job-1", b"its result")]
    assert await stand.redis.zrange(keys.OPEN, 0, -1) == [b"job-1"]
    # The same request is the same execution, and another one is refused.
    assert not await stand.admitter.admit(request, peer())
    with pytest.raises(AlreadyExists):
        await stand.admitter.admit(request.model_copy(update={"command": ("true", "y")}), peer())


async def test_records_are_restored_once_in_each_life_after_a_loss_and_none_is_replaced(stand: Stand) -> None:
    exec_id = await stand.admit("true")
    token = await stand.token()
    before = await stand.redis.hgetall(keys.execution(exec_id))
    await stand.redis.hset(keys.orders(AGENT), exec_id, token)
    restoring = Restoring(stand)
    await restoring.restoration.heard(AGENT, "2")
    assert await stand.redis.hgetall(keys.execution(exec_id)) == before
    await stand.redis.delete(keys.execution(exec_id))
    await restoring.restoration.heard(AGENT, "2")
    assert await stand.ledger.record(exec_id) is None
    await restoring.restoration.heard(AGENT, "3")
    assert await stand.ledger.record(exec_id) is not None


async def test_an_execution_whose_end_is_recorded_costs_no_verification(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent shows thousands of orders, and Redis lost the records of few."""
    ended, open_one = await stand.admit("true"), await stand.admit("true")
    await stand.ledger.settle(AGENT, ended, [ExecState.QUEUED], ExecState.EXPIRED, reason="late", fence=True)
    for exec_id in (ended, open_one, "lost"):
        await stand.redis.hset(keys.orders(AGENT), exec_id, "a token")
    verified: list[str] = []

    def verify(_: str, exec_id: str, token: str) -> None:
        assert token == "a token"
        verified.append(exec_id)

    restoring = Restoring(stand)
    monkeypatch.setattr(restoring.restoration, "_verify", verify)
    await restoring.restoration.heard(AGENT, "2")
    assert sorted(verified) == sorted([open_one, "lost"])


@pytest.mark.parametrize(
    "wrong", [("SET", "x"), ("RPUSH", "x"), ("SADD", "x"), ("ZADD", "1", "x"), ("XADD", "*", "x", "x")]
)
@pytest.mark.parametrize("key", [keys.execution, lambda name: keys.result(AGENT, name)])
async def test_one_key_of_another_type_keeps_no_other_record_from_being_restored(
    stand: Stand, wrong: tuple[str, ...], key: Callable[[str], str]
) -> None:
    tokens = dict.fromkeys(("a-first", "bad", "z-last"), "")
    for name in tokens:
        await stand.admit("true", id=name)
        tokens[name] = await stand.token()
    await lose(stand.redis)
    await stand.redis.hset(keys.orders(AGENT), mapping=tokens)
    command, *values = wrong
    if key("bad") == keys.execution("bad") or command != "SET":
        await stand.redis.execute_command(command, key("bad"), *values)
    await Restoring(stand).restoration.heard(AGENT, "2")
    for name in ("a-first", "z-last"):
        assert await stand.ledger.record(name) is not None


async def test_an_execution_that_was_approved_does_not_wait_for_its_approval_again(stand: Stand) -> None:
    exec_id = await stand.admit("printf", "x")
    approval = await stand.approvals.describe(exec_id, peer(BOSS))
    parked = await stand.ledger.parked(exec_id)
    record = await stand.redis.hgetall(keys.execution(exec_id))
    assert parked is not None
    await stand.approvals.approve(exec_id, approval.digest, "fine", peer(BOSS))
    token = await stand.token()
    # Back to the state before the approval.
    await stand.redis.delete(keys.execution(exec_id))
    for name, value in record.items():
        await stand.redis.hset(keys.execution(exec_id), name, value)
    await stand.redis.set(keys.parked(exec_id), parked)
    await stand.redis.zadd(keys.APPROVALS, {exec_id: 9})
    await stand.redis.hset(keys.orders(AGENT), exec_id, token)
    await Restoring(stand).restoration.heard(AGENT, "2")
    after = await stand.ledger.record(exec_id)
    assert after is not None
    assert (after.states, after.approved_by) == ([ExecState.PENDING_APPROVAL, ExecState.QUEUED], str(BOSS))
    assert await stand.ledger.approvals() == []
    assert await stand.ledger.parked(exec_id) is None


async def test_only_genuine_orders_for_the_agent_and_the_execution_count(stand: Stand) -> None:
    await stand.heard("web-2")
    exec_id = await stand.admit("true")
    token = await stand.token()
    other = await stand.admit("true", agent_id="web-2")
    foreign = await stand.token("web-2")
    svid = stand.identity.current()
    order = verify_message(token, WorkOrder, svid.bundle, svid.spiffe_id)
    old = sign(svid, order.model_copy(update={"digest": "", "jti": "old"}))
    await lose(stand.redis)
    for name, text in ((other, foreign), ("another", token), ("garbage", "no token"), ("old", old)):
        await stand.redis.hset(keys.orders(AGENT), name, text)
    await stand.redis.hset(keys.orders(AGENT), b"\xff", b"\xff")
    await Restoring(stand).restoration.heard(AGENT, "2")
    for name in (exec_id, other, "another", "garbage", "old"):
        assert await stand.ledger.record(name) is None
    assert json.loads(await stand.redis.get(keys.info(AGENT)) or b"{}")["boot"] == f"journal of {AGENT}"


async def test_orders_of_another_type_restore_nothing(stand: Stand) -> None:
    await stand.redis.set(keys.orders(AGENT), "no hash")
    restoring = Restoring(stand)
    await restoring.restoration.heard(AGENT, "2")
    assert restoring.folded == []


@pytest.mark.parametrize("when_full", list(WhenFull))
async def test_a_restored_record_knows_whether_its_output_waits_for_readers(stand: Stand, when_full: WhenFull) -> None:
    exec_id = await stand.admit("true")
    svid = stand.identity.current()
    order = verify_message(await stand.token(), WorkOrder, svid.bundle, svid.spiffe_id)
    output = order.grant.output.model_copy(update={"when_full": when_full})
    grant = order.grant.model_copy(update={"output": output})
    await lose(stand.redis)
    await stand.redis.hset(keys.orders(AGENT), exec_id, sign(svid, order.model_copy(update={"grant": grant})))
    await Restoring(stand).restoration.heard(AGENT, "2")
    record = await stand.ledger.record(exec_id)
    assert record is not None
    assert record.waits is (when_full is WhenFull.WAIT)


async def test_after_a_loss_a_request_waits_until_the_records_of_its_agent_are_restored(stand: Stand) -> None:
    restoring = Restoring(stand)
    stand.admitter.wait_with(restoring.restoration)
    exec_id = await stand.admit("true")
    token = await stand.token()
    await lose(stand.redis)
    await stand.redis.hset(keys.orders(AGENT), exec_id, token)
    restoring.lives.lost_at = time.monotonic()
    assert not stand.admitter.settled(AGENT)
    repeated = asyncio.create_task(
        stand.admitter.admit(ExecRequest(id=exec_id, agent_id=AGENT, command=("true",)), peer())
    )
    await asyncio.sleep(0)
    assert await stand.queued() == 0
    await restoring.restoration.heard(AGENT, "2")
    assert stand.admitter.settled(AGENT)
    # The record was restored before, so the request is known, and no second order is sent.
    assert not await repeated
    assert await stand.queued() == 0


async def test_a_request_waits_no_longer_for_an_agent_that_restores_nothing(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HOLD_SECONDS", 0.05)
    restoring = Restoring(stand)
    stand.admitter.wait_with(restoring.restoration)
    restoring.lives.lost_at = time.monotonic()
    await stand.admit("true")
    assert await stand.queued() == 1
    assert stand.admitter.settled(AGENT)


async def test_a_result_counts_also_if_there_is_a_record_of_its_order(stand: Stand) -> None:
    """Another orchestrator may have restored the record, and stopped before it read the result."""
    exec_id = await stand.admit("true")
    restoring = Restoring(stand)
    await stand.redis.hset(keys.orders(AGENT), exec_id, await stand.token())
    await stand.redis.set(keys.result(AGENT, exec_id), b"result")
    await restoring.restoration.heard(AGENT, "2")
    assert restoring.folded == [(AGENT, exec_id, b"result")]
    assert await stand.codes(exec_id) == ["admitted", "dispatched"]


async def test_a_record_that_lost_its_dispatch_has_its_order_again(stand: Stand) -> None:
    """An admission with replicas takes two round trips, and Redis may go back to the state in between."""
    exec_id = await stand.admit("true")
    token, before = await stand.token(), await stand.redis.hgetall(keys.execution(exec_id))
    await stand.redis.hdel(keys.execution(exec_id), "order_sha256", "life", "dispatched_ms")
    restoring = Restoring(stand)
    await stand.redis.hset(keys.orders(AGENT), exec_id, token)
    await restoring.restoration.heard(AGENT, "2")
    record = await stand.ledger.record(exec_id)
    assert record is not None
    assert (record.state, record.order_sha256) == (ExecState.QUEUED, hashlib.sha256(token.encode()).hexdigest())
    after = await stand.redis.hgetall(keys.execution(exec_id))
    assert (after[b"admitted_ms"], after[b"digest"]) == (before[b"admitted_ms"], before[b"digest"])
    assert await stand.codes(exec_id) == ["admitted", "dispatched", "record_restored"]


async def test_the_record_of_a_receipt_is_rebuilt_from_the_order_that_its_agent_published(stand: Stand) -> None:
    exec_id = await stand.admit("true")
    token = await stand.token()
    await lose(stand.redis)
    restoring = Restoring(stand)
    # Its heartbeat named this life before the agent had the order.
    await restoring.restoration.heard(AGENT, "2")
    assert not await restoring.restoration.restore(AGENT, exec_id)
    await stand.redis.hset(keys.orders(AGENT), exec_id, token)
    assert await restoring.restoration.restore(AGENT, exec_id)
    record = await stand.ledger.record(exec_id)
    assert record is not None
    assert (record.state, record.order_sha256) == (ExecState.QUEUED, hashlib.sha256(token.encode()).hexdigest())
    assert await stand.codes(exec_id) == ["record_restored"]
    # Once more changes nothing.
    assert await restoring.restoration.restore(AGENT, exec_id)
    assert await stand.codes(exec_id) == ["record_restored"]


async def test_an_order_after_the_last_loss_rebuilds_no_record(stand: Stand) -> None:
    """Its record was deleted with its retention, and an agent could bring it back at any time."""
    exec_id = await stand.admit("true")
    await stand.redis.hset(keys.orders(AGENT), exec_id, await stand.token())
    await stand.redis.delete(keys.execution(exec_id))
    restoring = Restoring(stand)
    restoring.lives.valid_from = 0
    assert not await restoring.restoration.restore(AGENT, exec_id)
    assert await stand.ledger.record(exec_id) is None


@pytest.mark.parametrize("value", ["no token", b"\xff"])
async def test_what_is_no_order_rebuilds_no_record(stand: Stand, value: str | bytes) -> None:
    await stand.redis.hset(keys.orders(AGENT), "job-1", value)
    assert not await Restoring(stand).restoration.restore(AGENT, "job-1")
    await stand.redis.delete(keys.orders(AGENT))
    await stand.redis.set(keys.orders(AGENT), "no hash")
    assert not await Restoring(stand).restoration.restore(AGENT, "job-1")
