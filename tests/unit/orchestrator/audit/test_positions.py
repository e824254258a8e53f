"""The positions of sinks, and texts that are none."""

from __future__ import annotations

import pytest

from tachikoma_orchestrator.audit.positions import SinkPosition, cursor_order

GARBAGE = [
    b"", b"\xff", b"null", b"[]", b"[" * 9999, b'{"cursor":"0-0"}', b'{"cursor":5,"seq":1,"at":1}',
    b'{"cursor":" 1-0","seq":1,"at":1}', b'{"cursor":"99999999999999999999-0","seq":1,"at":1}',
    b'{"cursor":"1-0","seq":1e999,"at":1}', b'{"cursor":"1-0","seq":99999999999999999999,"at":1}',
    b'{"cursor":"1-0","seq":1,"at":NaN}',
]  # fmt: skip


@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_text_that_is_no_position_is_read_as_none(garbage: bytes) -> None:
    assert SinkPosition.read(garbage) is None


def test_a_position_is_read_as_it_was_written() -> None:
    position = SinkPosition("1769860800000-7", 12, 1_769_860_800)
    assert SinkPosition.read(position.to_json().encode()) == position


def test_places_are_ordered_as_in_redis() -> None:
    cursors = ["0-0", "9-1", "9-10", "10-0", "10-2"]
    assert sorted(sorted(cursors), key=cursor_order) == cursors
