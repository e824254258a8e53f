"""The reader that output waits for: while it reads, and not for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tachikoma.streams.frames import READER_LEFT, reader_position
from tachikoma_worker.output.awaited_reader import AwaitedReader


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def reader(
    *, always: bool = False, attached: bool = False, limit_seconds: float | None = 60
) -> tuple[AwaitedReader, Clock]:
    clock = Clock()
    return AwaitedReader(always=always, attached=attached, limit_seconds=limit_seconds, clock=clock), clock


def test_without_a_reader_output_is_cut() -> None:
    awaited, _ = reader()
    assert not awaited.keeps(1)
    awaited.note(b"")
    assert not awaited.keeps(1)


def test_output_waits_for_the_caller_that_the_order_named_before_its_first_report() -> None:
    awaited, clock = reader(attached=True)
    awaited.note(b"")
    assert awaited.keeps(1)
    clock.now += 59.9
    assert awaited.keeps(1)
    clock.now += 0.2
    assert not awaited.keeps(1)


def test_a_caller_that_reads_is_waited_for_however_long_it_takes() -> None:
    awaited, clock = reader(attached=True)
    for seq in range(1, 100):
        awaited.note(reader_position(seq - 1, "0123abcd"))
        assert awaited.keeps(seq)
        clock.now += 59
        assert awaited.keeps(seq)
        awaited.note(reader_position(seq, "0123abcd"))
        assert not awaited.keeps(seq)


def test_a_caller_that_was_given_up_is_waited_for_again_once_it_reads() -> None:
    awaited, clock = reader(attached=True)
    assert awaited.keeps(5)
    clock.now += 61
    assert not awaited.keeps(5)
    # Nothing more waits for it meanwhile.
    assert not awaited.keeps(9)
    awaited.note(b"0")
    assert not awaited.keeps(9)
    awaited.note(b"3")
    assert awaited.keeps(9)


def test_the_time_of_a_wait_begins_when_output_waits() -> None:
    awaited, clock = reader(attached=True)
    clock.now += 1000
    assert awaited.keeps(1)
    awaited.note(b"1")
    assert not awaited.keeps(1)
    clock.now += 1000
    assert awaited.keeps(2)


def test_a_caller_that_left_is_not_waited_for_until_another_comes() -> None:
    for report in (READER_LEFT, b""):
        awaited, _ = reader(attached=True)
        awaited.note(reader_position(2, "0123abcd"))
        assert awaited.keeps(3)
        awaited.note(report)
        assert not awaited.keeps(3)
        awaited.note(b"")
        assert not awaited.keeps(3)
        awaited.note(reader_position(2, "77777777"))
        assert awaited.keeps(3)


def test_a_caller_may_leave_before_its_first_report() -> None:
    awaited, _ = reader(attached=True)
    awaited.note(READER_LEFT)
    assert not awaited.keeps(1)
    awaited.note(b"")
    assert not awaited.keeps(1)


def test_output_that_always_waits_needs_no_reader_and_has_no_limit_of_its_own() -> None:
    awaited, clock = reader(always=True, limit_seconds=None)
    assert awaited.keeps(1)
    clock.now += 10**6
    awaited.note(b"")
    assert awaited.keeps(1)
    awaited.note(b"1")
    assert not awaited.keeps(1)
    # The command has ended: only a reader that is there is waited for.
    awaited.always = False
    assert awaited.keeps(2)
    awaited.note(b"")
    assert not awaited.keeps(2)


def test_with_a_limit_of_zero_nothing_waits_and_redis_is_not_asked() -> None:
    awaited, _ = reader(attached=True, limit_seconds=0)
    assert not awaited.matters_to(1)
    assert not awaited.keeps(1)
    assert reader(limit_seconds=60)[0].matters_to(1)


@given(st.lists(st.one_of(st.binary(max_size=24), st.integers(0, 40).map(lambda seq: b"%d" % seq)), max_size=30))
def test_whatever_redis_says_a_wait_ends(reports: list[bytes]) -> None:
    """A reader that reports at random holds the command at most the limit for each change of its position."""
    awaited, clock = reader(attached=True, limit_seconds=10)
    for report in reports:
        awaited.note(report)
        awaited.keeps(50)
    clock.now += 10
    awaited.keeps(50)
    clock.now += 10
    assert not awaited.keeps(50)
