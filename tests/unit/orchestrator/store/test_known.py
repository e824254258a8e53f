"""What a process knows about its Redis."""

from __future__ import annotations

from tachikoma.redis.access import connect
from tachikoma_orchestrator.store.known import Known, known, share_known


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
