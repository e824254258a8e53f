"""Quotas of retained output, on a real Redis."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest

from admissions import Stand
from tachikoma.identity.signed_messages import OutputDigest, Receipt
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.streams.frames import FIELD, STDOUT, Frame, entry_id
from tachikoma.vocabulary.clock import ms_of_seconds
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.executions.follower import Follower
from tachikoma_orchestrator.executions.retained_output import OVERHEAD_BYTES, RetainedOutput
from tachikoma_orchestrator.executions.transitions import TransitionOutcome
from tachikoma_orchestrator.store.subscriber import Subscriber

AGENT = "web-1"
SIZE = 1000
EACH = SIZE + OVERHEAD_BYTES
ALICE, BOB = "spiffe://a/user/alice", "spiffe://a/user/bob"


def quotas(redis: Redis, *, total: int = 100, requester: int = 100, log_bytes: int = 10**9) -> RetainedOutput:
    """Quotas of so many outputs."""
    return RetainedOutput(
        redis, total_bytes=total * EACH, requester_bytes=requester * EACH, log_bytes=log_bytes,
        retention=timedelta(hours=1),
    )  # fmt: skip


async def ended(redis: Redis, exec_id: str, at_ms: int, *, by: str = ALICE, size: int = SIZE) -> None:
    """An execution whose output and result are retained."""
    await redis.execute_command("XADD", keys.output(AGENT, exec_id), "1-0", "d", "x")
    await redis.set(keys.result(AGENT, exec_id), "x")
    await redis.zadd(keys.OUTPUTS, {f"{at_ms} {size} {AGENT} {exec_id} {by}": at_ms})


async def retained(redis: Redis) -> list[str]:
    """The executions whose output is retained; output, result and index agree."""
    found = sorted([key.decode().split(":")[-1] async for key in redis.scan_iter(match=keys.output("*", "*"))])
    index = await redis.zrange(keys.OUTPUTS, 0, -1)
    assert sorted(member.decode().split(" ")[3] for member in index) == found
    for exec_id in found:
        assert await redis.get(keys.result(AGENT, exec_id)) is not None
    return found


async def test_the_oldest_output_of_a_requester_goes_first_and_no_other_requesters(redis: Redis) -> None:
    limits = quotas(redis, requester=2)
    await ended(redis, "bob", 1, by=BOB)
    for number in range(4):
        await ended(redis, f"alice-{number}", 2 + number)
    await limits.enforce(10)
    assert await retained(redis) == ["alice-2", "alice-3", "bob"]
    # New entries count together with those that were read before, also in the same millisecond.
    await ended(redis, "alice-4", 5)
    await limits.enforce(10)
    await limits.enforce(10)
    assert await retained(redis) == ["alice-3", "alice-4", "bob"]


async def test_in_total_the_oldest_goes_first(redis: Redis) -> None:
    limits = quotas(redis, total=3)
    for number in range(6):
        await ended(redis, f"job-{number}", number, by=(ALICE, BOB)[number % 2])
    await limits.enforce(10)
    assert await retained(redis) == ["job-3", "job-4", "job-5"]


async def test_an_output_counts_at_most_what_its_agent_retains_and_an_expired_one_not_at_all(redis: Redis) -> None:
    limits = quotas(redis, total=3, log_bytes=SIZE)
    await ended(redis, "large", 5, size=10**15)
    await ended(redis, "other", 6)
    await limits.enforce(10)
    assert await retained(redis) == ["large", "other"]
    hour = 3_600_000
    await limits.enforce(hour + 5)
    assert limits._sizes == {ALICE: EACH}
    await limits.enforce(hour + 6)
    assert limits._outputs == {}
    assert await redis.zrange(keys.OUTPUTS, 0, -1) == []


@pytest.mark.parametrize("member", ["", "x", "1 2 3", "a b c d e", "1 x web-1 job spiffe://a", "1 2 3 4 5 6", b"\xff"])
async def test_an_entry_of_another_writer_is_removed(redis: Redis, member: str | bytes) -> None:
    await redis.execute_command("ZADD", keys.OUTPUTS, 5, member)
    await ended(redis, "job", 6)
    limits = quotas(redis)
    await limits.enforce(10)
    assert await retained(redis) == ["job"]
    assert list(limits._outputs) == [ALICE]


async def test_an_index_of_another_type_is_made_again(redis: Redis) -> None:
    await redis.set(keys.OUTPUTS, "no index")
    limits = quotas(redis)
    await limits.enforce(10)
    await ended(redis, "job", 6)
    await limits.enforce(10)
    assert await retained(redis) == ["job"]


async def test_many_entries_are_read_in_steps(redis: Redis) -> None:
    for number in range(2500):
        await redis.zadd(keys.OUTPUTS, {f"{number // 1200 + 1} 10 {AGENT} job-{number} {ALICE}": number // 1200 + 1})
    limits = quotas(redis, requester=1)
    await limits.enforce(10)
    assert len(await redis.zrange(keys.OUTPUTS, 0, -1)) == EACH // (10 + OVERHEAD_BYTES)


async def test_what_a_receipt_adds_is_counted_and_a_deleted_output_is_a_gap_for_its_readers(
    redis: Redis, tmp_path: Path
) -> None:
    """The script that records a receipt and the quotas agree about the index, and the executions stay as they were."""
    stand = await Stand.make(redis, tmp_path)
    digest = OutputDigest(total_bytes=SIZE, sha256="ab" * 32, truncated=False, excerpt_sha256="ab" * 32)
    nothing = OutputDigest(total_bytes=0, sha256="ab" * 32, truncated=False, excerpt_sha256="ab" * 32)
    exec_ids = []
    for number in range(3):
        exec_id = await stand.admit("true", id=f"job-{number}")
        frame = Frame(STDOUT, 1, 0, 5, b"x" * SIZE)
        await redis.execute_command("XADD", keys.output(AGENT, exec_id), entry_id(1), FIELD, frame.encode())
        await redis.set(keys.result(AGENT, exec_id), "x")
        record = await stand.ledger.record(exec_id)
        assert record is not None
        receipt = Receipt(
            iss="", iat=1, jti=exec_id, order_sha256=record.order_sha256, state=ExecState.SUCCEEDED, exit_code=0,
            signal=0, error="", executable="/bin/true", started_ms=1, ended_ms=2, duration_us=1, chunks=1,
            stdout=digest, stderr=nothing,
        )  # fmt: skip
        assert await stand.ledger.complete(AGENT, exec_id, receipt, "token") is TransitionOutcome.DONE
        exec_ids.append(exec_id)
    now = ms_of_seconds(time.time()) + 1000
    await quotas(redis, requester=2).enforce(now)
    assert await retained(redis) == exec_ids[1:]
    for exec_id, gaps in zip(exec_ids, ([SIZE], [], []), strict=True):
        record = await stand.ledger.record(exec_id)
        assert record is not None
        assert record.state is ExecState.SUCCEEDED
        follower = Follower(redis, Subscriber(redis), AGENT, exec_id, 0)
        assert len([output async for output in follower.replay()]) == (0 if gaps else 1)
        assert [missing for missing in [follower.missing_at_end(SIZE)] if missing] == gaps
