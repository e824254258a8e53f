"""Quotas of retained output, on a real Redis."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma_orchestrator.executions.retained_output import OVERHEAD_BYTES, RetainedOutput

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
