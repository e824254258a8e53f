"""`NAME=value`, read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.vocabulary.pairs import parse_pair, parse_pairs


@pytest.mark.parametrize(
    ("text", "pair"), [("a=b", ("a", "b")), ("a=", ("a", "")), ("a=b=c", ("a", "b=c")), ("a = b", ("a ", " b"))]
)
def test_a_pair_is_read(text: str, pair: tuple[str, str]) -> None:
    assert parse_pair(text) == pair


@pytest.mark.parametrize("text", ["", "a", "=", "=b"])
def test_a_text_without_name_or_equals_sign_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not NAME=value") as caught:
        parse_pair(text)
    assert repr(text) in str(caught.value)


@given(st.dictionaries(st.text(min_size=1, max_size=9).filter(lambda name: "=" not in name), st.text(max_size=9)))
def test_all_pairs_are_read_back(pairs: dict[str, str]) -> None:
    assert parse_pairs(f"{name}={value}" for name, value in pairs.items()) == pairs


def test_of_the_same_name_the_last_counts() -> None:
    assert parse_pairs(["a=1", "b=2", "a=3"]) == {"a": "3", "b": "2"}
