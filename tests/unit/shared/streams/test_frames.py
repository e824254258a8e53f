"""Frames of the output log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.streams.frames import STDERR, STDOUT, Frame, entry_id, sequence_of

FRAMES = st.builds(
    Frame,
    st.sampled_from([STDOUT, STDERR]),
    st.integers(1, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=200),
)
HEADER_BYTES = 25


@given(FRAMES)
def test_any_frame_reads_as_it_was_written(frame: Frame) -> None:
    assert Frame.decode(frame.encode()) == frame


@given(st.binary(max_size=200))
def test_the_bytes_of_a_chunk_stand_in_its_frame_unchanged(data: bytes) -> None:
    raw = Frame(STDOUT, 1, 0, 0, data).encode()
    assert len(raw) == HEADER_BYTES + len(data)
    assert raw.endswith(data)


@given(st.binary(max_size=HEADER_BYTES - 1))
def test_what_is_shorter_than_a_header_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="has no header"):
        Frame.decode(raw)


@given(st.binary(min_size=HEADER_BYTES, max_size=60))
def test_garbage_is_refused_or_is_a_frame_after_all(raw: bytes) -> None:
    try:
        frame = Frame.decode(raw)
    except ValueError:
        assert raw[0] not in (STDOUT, STDERR) or raw[1:9] == bytes(8)
        return
    assert frame.encode() == raw


@pytest.mark.parametrize("kind", [0, 3, 255])
def test_a_kind_nobody_knows_is_refused(kind: int) -> None:
    with pytest.raises(ValueError, match=rf"kind {kind}, number 1"):
        Frame.decode(Frame(kind, 1, 0, 0, b"x").encode())


def test_numbers_begin_at_one() -> None:
    with pytest.raises(ValueError, match="number 0"):
        Frame.decode(Frame(STDOUT, 0, 0, 0, b"x").encode())


@given(st.integers(1, 2**63))
def test_a_number_is_found_again_in_its_entry_id(seq: int) -> None:
    assert sequence_of(entry_id(seq).encode()) == seq
