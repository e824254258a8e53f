"""What a process knows about its Redis."""

from __future__ import annotations

import asyncio
import time

import pytest

from tachikoma.redis.access import connect
from tachikoma_orchestrator.store.known import LAG_SECONDS, LINGER_SECONDS, Known, known, online_replicas, share_known


def test_the_latest_event_is_remembered_in_whatever_order_the_answers_come() -> None:
    last = Known()
    for seq in (3, 5, 4):
        last.note(seq, f"{seq}000-{seq}")
    assert (last.seq, last.cursor, last.time_ms) == (5, "5000-5", 5000)


def test_clients_share_what_they_are_told_to_share() -> None:
    one, other = connect("redis://localhost", name="one"), connect("redis://localhost", name="other")
    assert known(one) is known(one)
    assert known(one) is not known(other)
    share_known(other, known(one))
    assert known(one) is known(other)


@pytest.mark.parametrize(
    ("states", "number"),
    [
        ([], 0), (["online"], 1), (["online", "online"], 2), (["wait_bgsave"], 0), (["send_bulk", "online"], 1),
        (["rdb_transmitted"], 0), (["bg_transfer"], 0), (["online", "send_bulk"], 1),
    ],
)  # fmt: skip
def test_only_replicas_that_follow_can_confirm(states: list[str], number: int) -> None:
    replicas = {f"slave{number}": {"ip": "10.0.0.1", "state": state} for number, state in enumerate(states)}
    info: dict[str, object] = {"connected_slaves": len(states), **replicas, "slave_read_only": 1, "slave9": "garbage"}
    assert online_replicas(info) == number


@pytest.mark.parametrize(("lag", "number"), [(0, 1), (LAG_SECONDS, 1), (LAG_SECONDS + 1, 0), (-1, 0), ("garbage", 0)])
def test_a_replica_that_is_silent_cannot_confirm(lag: object, number: int) -> None:
    assert online_replicas({"slave0": {"state": "online", "lag": lag}}) == number


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock, as its only element."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_replicas_count_for_a_while_after_they_have_left(clock: list[float]) -> None:
    values = Known()
    values.note_replicas(0, "a")
    assert values.replicas == 0
    values.note_replicas(2, "a")
    for later, left, counted in ((LINGER_SECONDS - 1, 1, 2), (1, 1, 1), (LINGER_SECONDS - 1, 0, 1), (1, 0, 0)):
        clock[0] += later
        values.note_replicas(left, "a")
        assert values.replicas == counted


def test_a_promoted_server_needs_one_replica_until_the_others_have_connected(clock: list[float]) -> None:
    values = Known()
    values.note_replicas(2, "a")
    values.note_replicas(0, "b")
    assert values.replicas == 1
    values.note_replicas(2, "b")
    assert values.replicas == 2
    clock[0] += LINGER_SECONDS
    values.note_replicas(0, "c")
    assert values.replicas == 1
    # Where there were none, there are none.
    clock[0] += LINGER_SECONDS
    values.note_replicas(0, "c")
    values.note_replicas(0, "d")
    assert values.replicas == 0


async def test_as_many_confirmations_as_replicas_suffice_at_once_and_none_never() -> None:
    values = Known()
    values.note_replicas(2, "a")
    assert await values.suffice(2)
    assert await values.suffice(3)
    assert not await values.suffice(0)


@pytest.mark.parametrize(("replid", "suffice"), [("a", True), ("b", False)])
async def test_fewer_suffice_once_a_replica_that_left_counts_no_longer_unless_it_was_promoted(
    clock: list[float], replid: str, suffice: bool
) -> None:
    values = Known()
    values.note_replicas(2, "a")
    values.note_replicas(1, "a")
    waiting = asyncio.create_task(values.suffice(1))
    await asyncio.sleep(0)
    assert not waiting.done()
    clock[0] += LINGER_SECONDS
    values.note_replicas(1, replid)
    assert await waiting is suffice


async def test_the_wait_for_a_replica_that_left_has_a_bound(clock: list[float]) -> None:
    values = Known()
    values.note_replicas(2, "a")
    waiting = asyncio.create_task(values.suffice(1))
    await asyncio.sleep(0)
    # Nobody can look at the primary meanwhile.
    clock[0] += LAG_SECONDS + 2 * LINGER_SECONDS + 1
    assert not await waiting
