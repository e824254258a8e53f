"""What a process knows about its Redis."""

from __future__ import annotations

import time

import pytest

from tachikoma.redis.access import connect
from tachikoma_orchestrator.store.known import LINGER_SECONDS, Known, known, online_replicas, share_known


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


def test_replicas_count_for_a_while_after_the_last_one_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now, values = 1000.0, Known()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    values.note_replicas(0)
    assert values.replicas == 0
    values.note_replicas(2)
    now += LINGER_SECONDS - 1
    values.note_replicas(0)
    assert values.replicas == 2
    now += 1
    values.note_replicas(0)
    assert values.replicas == 0
