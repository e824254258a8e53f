"""Sealed frames: both sides agree, and no other frame is opened."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.sessions.sealing import (
    OVERHEAD_BYTES,
    Direction,
    EphemeralKey,
    InvalidFrame,
    Opener,
    Sealer,
    epoch_of,
)

OFFER, ANSWER = "offer.of.orchestrator", "answer.of.agent"


def ends(
    offer: str = OFFER, other_offer: str = OFFER, execution: str = "e1", other: str = "e1", epoch: int = 1
) -> tuple[tuple[Sealer, Opener], tuple[Sealer, Opener]]:
    """The ends of the orchestrator and of the agent, which may have seen different messages."""
    ours, theirs = EphemeralKey(), EphemeralKey()
    return (
        ours.agree(theirs.public, offer, ANSWER, execution, epoch, sends=Direction.TO_AGENT),
        theirs.agree(ours.public, other_offer, ANSWER, other, epoch, sends=Direction.TO_ORCHESTRATOR),
    )


@given(st.lists(st.binary(max_size=200), max_size=8), st.lists(st.binary(max_size=200), max_size=8))
def test_both_sides_read_each_other(to_agent: list[bytes], to_orchestrator: list[bytes]) -> None:
    (sealer, opener), (agent_sealer, agent_opener) = ends(epoch=7)
    sealed = [sealer.seal(content) for content in to_agent]
    assert [agent_opener.open(raw) for raw in sealed] == to_agent
    assert [opener.open(agent_sealer.seal(content)) for content in to_orchestrator] == to_orchestrator
    for raw, content in zip(sealed, to_agent, strict=True):
        assert len(raw) == len(content) + OVERHEAD_BYTES
        assert epoch_of(raw) == 7


def test_a_frame_is_opened_once_and_in_order() -> None:
    (sealer, _), (_, opener) = ends()
    first, second, third = (sealer.seal(bytes([number])) for number in range(3))
    assert opener.open(first) == b"\x00"
    with pytest.raises(InvalidFrame, match="frame 1 came after frame 1"):
        opener.open(first)
    with pytest.raises(InvalidFrame, match="frames are missing"):
        opener.open(third)
    assert opener.open(second) == b"\x01"
    assert opener.open(third) == b"\x02"


def test_acknowledgements_may_be_missed_but_not_repeated() -> None:
    (_, opener), (sealer, _) = ends()
    first, second = sealer.seal(b"a"), sealer.seal(b"b")
    assert opener.open(second) == b"b"
    with pytest.raises(InvalidFrame, match="frame 1 came after frame 2"):
        opener.open(first)


@given(st.binary(min_size=1, max_size=50), st.data())
def test_a_changed_bit_is_noticed_and_the_frame_may_come_again(content: bytes, data: st.DataObject) -> None:
    (sealer, _), (_, opener) = ends()
    raw = sealer.seal(content)
    position = data.draw(st.integers(0, len(raw) * 8 - 1))
    changed = bytearray(raw)
    changed[position // 8] ^= 1 << position % 8
    with pytest.raises(InvalidFrame):
        opener.open(bytes(changed))
    assert opener.open(raw) == content


@given(st.binary(max_size=100))
def test_garbage_is_refused(raw: bytes) -> None:
    (_, _), (_, opener) = ends()
    with pytest.raises(InvalidFrame):
        opener.open(raw)


def test_a_frame_of_one_direction_is_none_of_the_other() -> None:
    (sealer, opener), _ = ends()
    with pytest.raises(InvalidFrame, match="was altered"):
        opener.open(sealer.seal(b"x"))


@pytest.mark.parametrize("difference", [{"other_offer": "another.signed.offer"}, {"other": "e2"}])
def test_keys_are_bound_to_the_signed_messages_and_the_execution(difference: dict[str, str]) -> None:
    (sealer, _), (_, opener) = ends(**difference)
    with pytest.raises(InvalidFrame, match="was altered"):
        opener.open(sealer.seal(b"x"))


def test_frames_of_another_epoch_are_refused() -> None:
    (sealer, _), _ = ends(epoch=1)
    _, (_, opener) = ends(epoch=2)
    with pytest.raises(InvalidFrame, match="a frame of epoch 1 came in epoch 2"):
        opener.open(sealer.seal(b"x"))


@given(st.text(max_size=60))
def test_a_half_that_is_no_key_is_refused(half: str) -> None:
    with pytest.raises(InvalidFrame, match="ephemeral key cannot be used"):
        EphemeralKey().agree(half, OFFER, ANSWER, "e1", 1, sends=Direction.TO_AGENT)


def test_a_half_of_small_order_is_refused() -> None:
    with pytest.raises(InvalidFrame, match="ephemeral key cannot be used"):
        EphemeralKey().agree("A" * 43, OFFER, ANSWER, "e1", 1, sends=Direction.TO_AGENT)


def test_every_key_pair_is_new() -> None:
    assert len({EphemeralKey().public for _ in range(10)}) == 10
    assert all(len(EphemeralKey().public) == 43 for _ in range(3))
