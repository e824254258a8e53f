"""Contents of sealed frames."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.sessions import frames
from tachikoma.sessions.frames import (
    MAX_DATA_BYTES,
    Accepted,
    Acknowledge,
    Close,
    Data,
    Detach,
    End,
    Frame,
    Resize,
    Signal,
    SignalName,
    decode,
    encode,
)
from tachikoma.vocabulary.requests import WindowSize

OFFSETS = st.integers(0, 2**64 - 1)
CELLS = st.integers(0, 0xFFFF)
FRAMES: st.SearchStrategy[Frame] = st.one_of(
    st.builds(Data, OFFSETS, st.binary(max_size=200)),
    st.builds(End, OFFSETS),
    st.builds(Resize, st.builds(WindowSize, CELLS, CELLS, CELLS, CELLS)),
    st.builds(Signal, st.sampled_from(SignalName)),
    st.builds(Acknowledge, OFFSETS),
    st.just(Detach()),
    st.just(Close()),
    st.builds(Accepted, OFFSETS, st.booleans(), st.booleans(), st.booleans()),
)


@given(FRAMES)
def test_any_frame_reads_as_it_was_written(frame: Frame) -> None:
    assert decode(encode(frame)) == frame


def test_every_kind_is_tried() -> None:
    kinds = {Data, End, Resize, Signal, Acknowledge, Detach, Close, Accepted}
    assert kinds == {getattr(frames, name) for name in frames.__all__} & kinds
    assert len(frames._PARSERS) == len(kinds)


@given(st.binary(max_size=60))
def test_garbage_is_refused_or_is_a_frame(raw: bytes) -> None:
    try:
        frame = decode(raw)
    except ValueError:
        return
    assert encode(frame) == raw


@given(FRAMES, st.integers(1, 12))
def test_a_frame_that_is_cut_is_refused_or_another_one(frame: Frame, cut: int) -> None:
    raw = encode(frame)
    if isinstance(frame, (Data, Signal)):
        return
    with pytest.raises(ValueError, match=r"wrong length|not a frame"):
        decode(raw[:-cut])


def test_input_has_a_largest_size() -> None:
    assert decode(encode(Data(0, bytes(MAX_DATA_BYTES)))) == Data(0, bytes(MAX_DATA_BYTES))
    with pytest.raises(ValueError, match=f"at most {MAX_DATA_BYTES} are allowed"):
        decode(encode(Data(0, bytes(MAX_DATA_BYTES + 1))))


@pytest.mark.parametrize("name", [b"KILL", b"SEGV", b"", b"int", b"\xff", b"STOP"])
def test_other_signals_cannot_be_sent(name: bytes) -> None:
    with pytest.raises(ValueError, match=r"is not a valid SignalName|can't decode"):
        decode(b"\x04" + name)
