"""The bounds on attempts to join."""

from __future__ import annotations

import pytest

from tachikoma_orchestrator.api import join_service
from tachikoma_orchestrator.api.join_service import MAX_ADDRESSES, MAX_REFUSALS, Attempts


class Clock:
    """A monotonic clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(join_service, "time", made)
    return made


def refuse(attempts: Attempts, address: str, number: int = MAX_REFUSALS) -> None:
    for _ in range(number):
        attempts.refused(address)


def test_an_address_with_too_many_refusals_waits_until_the_minute_is_over(clock: Clock) -> None:
    attempts = Attempts()
    refuse(attempts, "192.0.2.1", MAX_REFUSALS - 1)
    assert attempts.wait_seconds("192.0.2.1") == 0
    clock.now += 20
    attempts.refused("192.0.2.1")
    assert attempts.wait_seconds("192.0.2.1") == 40
    assert attempts.wait_seconds("192.0.2.2") == 0
    clock.now += 40
    assert attempts.wait_seconds("192.0.2.1") == 0
    # A new minute begins with the next refusal.
    attempts.refused("192.0.2.1")
    assert attempts.wait_seconds("192.0.2.1") == 0


def test_addresses_of_one_ipv6_network_count_together(clock: Clock) -> None:
    attempts = Attempts()
    for number in range(MAX_REFUSALS):
        attempts.refused(f"2001:db8::{number + 1:x}")
    assert attempts.wait_seconds("2001:db8::ffff") == 60
    assert attempts.wait_seconds("2001:db8:0:1::1") == 0


def test_callers_of_unknown_address_count_together(clock: Clock) -> None:
    attempts = Attempts()
    refuse(attempts, "")
    assert attempts.wait_seconds("nonsense") == 60


def test_memory_is_bounded_and_the_oldest_addresses_are_forgotten(clock: Clock) -> None:
    attempts = Attempts()
    refuse(attempts, "192.0.2.1")
    for number in range(MAX_ADDRESSES):
        attempts.refused(f"10.0.{number // 256}.{number % 256}")
    assert attempts.wait_seconds("192.0.2.1") == 0
    assert len(attempts._refused) == MAX_ADDRESSES
