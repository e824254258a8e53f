"""The table of the formats' versions."""

from __future__ import annotations

import pytest

from tachikoma.identity.signed_messages import Receipt, SessionAnswer, SessionOffer, SignedRequest, WorkOrder
from tachikoma.vocabulary.formats import FORMATS, difference


def test_signed_messages_are_written_in_the_version_of_the_table() -> None:
    sessions = (("session", SessionOffer), ("session", SessionAnswer))
    for name, kind in (("order", WorkOrder), ("request", SignedRequest), ("receipt", Receipt), *sessions):
        assert kind.model_fields["v"].default == FORMATS[name]


@pytest.mark.parametrize("theirs", [{}, FORMATS, {"order": 1}, {"other": 7}])
def test_the_same_versions_are_no_difference(theirs: dict[str, int]) -> None:
    assert difference(theirs) == ""


def test_a_difference_names_both_versions() -> None:
    assert difference({"order": 2}) == "order format 2 instead of 1"
    assert difference({"receipt": 0, "claim": 3}) == "receipt format 0 instead of 1, claim format 3 instead of 1"
