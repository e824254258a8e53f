"""Shares of the targets of a batch."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from tachikoma.vocabulary.shares import Share, share_of


@pytest.mark.parametrize(
    ("share", "total", "number"),
    [("3", 100, 3), ("25%", 200, 50), ("1%", 10, 1), ("0%", 10, 0), ("100%", 7, 7), ("33%", 10, 3)],
)
def test_shares(share: str, total: int, number: int) -> None:
    assert share_of(share, total) == number


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "more than zero"),
        ("0%", "more than zero"),
        ("101%", "neither a number nor"),
        ("-1", "neither a number nor"),
    ],
)
def test_what_is_no_share_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(Share).validate_python(text)
