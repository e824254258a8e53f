"""The order and the times of a recording's events."""

from __future__ import annotations

import base64

from hypothesis import given
from hypothesis import strategies as st

from tachikoma.sessions.asciicast import INPUT, MARKER, OUTPUT, RESIZE, CastEvent
from tachikoma_orchestrator.recordings.parts import Event, Output
from tachikoma_orchestrator.recordings.timeline import Timeline, first_size


def events(outputs: list[Output], marks: list[Event], began_us: int = 100) -> list[CastEvent]:
    return [event for event, _ in Timeline(began_us).events(outputs, marks)]


def typed(place: int, data: bytes, offset: int = 0, time_us: int = 100) -> Event:
    return Event(offset, time_us, INPUT, base64.b64encode(data).decode(), place)


def test_an_event_is_at_its_place_in_the_output_and_not_after_what_follows() -> None:
    outputs = [Output(1, 0, 110, False, b"one"), Output(2, 3, 120, False, b"two")]
    marks = [Event(0, 100, MARKER, "attached"), Event(3, 500, RESIZE, "100x40"), Event(6, 90, MARKER, "left")]
    assert events(outputs, marks) == [
        (0, MARKER, "attached"), (10, OUTPUT, "one"), (20, RESIZE, "100x40"), (20, OUTPUT, "two"), (20, MARKER, "left")
    ]  # fmt: skip
    assert first_size(marks) is None
    assert first_size([Event(0, 1, RESIZE, "100x40")]) == (100, 40)


def test_a_character_in_two_chunks_is_one_and_a_gap_is_marked() -> None:
    euro = "€".encode()
    outputs = [
        Output(1, 0, 100, False, euro[:1]), Output(2, 1, 101, True, b"err"), Output(3, 4, 102, False, euro[1:]),
        Output(4, 6, 103, False, euro[:1]), Output(5, 17, 104, False, b"z\xff"),
    ]  # fmt: skip
    found = events(outputs, [])
    assert [(event.code, event.data) for event in found] == [
        (OUTPUT, ""), (OUTPUT, "err"), (OUTPUT, "€"), (OUTPUT, ""),
        (MARKER, "10 bytes of output are missing here"), (OUTPUT, "z\ufffd"),
    ]  # fmt: skip


def test_input_that_is_sent_again_after_a_broken_connection_counts_once() -> None:
    marks = [typed(0, b"ls"), typed(2, b" -l\n"), typed(1, b"s -l\npwd"), typed(2, b" -l\n")]
    assert "".join(event.data for event in events([], marks)) == "ls -l\npwd"


@given(
    st.lists(st.tuples(st.integers(0, 300), st.binary(min_size=1, max_size=9)), max_size=12),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 300)), max_size=8).map(sorted),
)
def test_times_never_go_back_and_no_byte_is_lost(
    chunks: list[tuple[int, bytes]], places: list[tuple[int, int]]
) -> None:
    outputs, offset = [], 0
    for number, (time_us, data) in enumerate(chunks, 1):
        outputs.append(Output(number, offset, time_us, False, data))
        offset += len(data)
    timeline = Timeline(100)
    found = list(timeline.events(outputs, [Event(place, time_us, MARKER, "m") for place, time_us in places]))
    times = [event.at_us for event, _ in found]
    assert times == sorted(times)
    assert all(time_us >= 0 for time_us in times)
    assert b"".join(data for _, data in found) == b"".join(data for _, data in chunks)
    assert sum(event.code == MARKER for event, _ in found) == len(places)
    assert (timeline.offset, timeline.missing_bytes) == (offset, 0)
