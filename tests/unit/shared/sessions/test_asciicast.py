"""Recordings in asciinema's formats."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.sessions.asciicast import EXIT, MARKER, OUTPUT, CastEvent, CastHeader, encode_event, read_cast

HEADER = CastHeader(100, 40, timestamp=1_700_000_000, term="xterm", command="bash -l")
#: No surrogates: they are no text.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
EVENTS = st.lists(st.tuples(st.integers(0, 10**12), st.sampled_from("oimrx"), TEXT), max_size=8).map(
    lambda found: [CastEvent(*event) for event in sorted(found)]
)


def lines(version: int, events: list[CastEvent]) -> list[bytes]:
    found, before = [HEADER.encode(version)], 0
    for event in events:
        found.append(encode_event(event, before if version == 3 else 0))
        before = event.at_us
    return [f"{line}\n".encode() for line in found]


@given(EVENTS, st.sampled_from([2, 3]))
def test_a_recording_comes_back_to_the_microsecond(events: list[CastEvent], version: int) -> None:
    header, found = read_cast(lines(version, events))
    assert header == HEADER
    assert list(found) == events


def test_the_lines_are_those_of_the_formats() -> None:
    events = [
        CastEvent(1_500_000, OUTPUT, "é\r\n"),
        CastEvent(2_000_001, MARKER, "here"),
        CastEvent(2_000_001, EXIT, "0"),
    ]
    third = [json.loads(line) for line in lines(3, events)]
    assert third == [
        {"version": 3, "term": {"cols": 100, "rows": 40, "type": "xterm"}, "timestamp": 1_700_000_000,
         "command": "bash -l"},
        [1.5, "o", "é\r\n"], [0.500001, "m", "here"], [0, "x", "0"],
    ]  # fmt: skip
    second = [json.loads(line) for line in lines(2, events)]
    assert second[0] == {
        "version": 2, "width": 100, "height": 40, "timestamp": 1_700_000_000, "command": "bash -l",
        "env": {"TERM": "xterm"},
    }  # fmt: skip
    assert second[2] == [2.000001, "m", "here"]
    assert json.loads(CastHeader(80, 24).encode()) == {"version": 3, "term": {"cols": 80, "rows": 24}}


def test_comments_and_empty_lines_are_no_events() -> None:
    _, events = read_cast([*lines(3, []), b"# a comment\n", b"\n", b'[1, "o", "x"]\n'])
    assert list(events) == [(1_000_000, "o", "x")]


@pytest.mark.parametrize("line", [b"", b"no JSON", b"[]", b"{}", b'{"version": 1}', b'{"version": 3, "term": 1}',
                                  b'{"version": 3, "term": {"cols": "x", "rows": 1}}', b'{"version": 2}'])  # fmt: skip
def test_a_line_that_is_no_header_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_cast([line])
    with pytest.raises(ValueError, match="is empty"):
        read_cast([])


@pytest.mark.parametrize("line", [b"x\n", b"[]\n", b'["a", "o", "x"]\n', b'[NaN, "o", "x"]\n', b'[1, "o"]\n', b"3\n",
                                  b'[%d, "o", "x"]\n' % 10**400, b'[-Infinity, "o", "x"]\n',
                                  b"[" * 100_000 + b"\n"])  # fmt: skip
def test_a_line_that_is_no_event_is_refused(line: bytes) -> None:
    _, events = read_cast([*lines(3, []), line])
    with pytest.raises(ValueError, match="no event"):
        list(events)


def test_time_never_goes_back_nor_beyond_a_year() -> None:
    _, events = read_cast([*lines(3, []), b'[-5, "o", "a"]\n', b'[1e307, "o", "b"]\n', b'[-1e307, "o", "c"]\n'])
    assert [event.at_us for event in events] == [0, *[366 * 24 * 3600 * 1_000_000] * 2]
    _, events = read_cast([*lines(2, []), b'[5, "o", "a"]\n', b'[1, "o", "b"]\n'])
    assert [event.at_us for event in events] == [5_000_000, 5_000_000]
