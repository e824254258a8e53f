"""Ids of executions and agents."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.vocabulary.identifiers import ID_PATTERN, is_identifier, new_id


@given(st.from_regex(ID_PATTERN, fullmatch=True))
def test_what_has_the_form_is_an_id(text: str) -> None:
    assert is_identifier(text)


@pytest.mark.parametrize("text", ["", "-a", "_a", "a.b", "a b", "a\n", "\na", "é", "a" * 64, "a/b", "a\0", "a:b"])
def test_other_text_is_no_id(text: str) -> None:
    assert not is_identifier(text)


def test_new_ids_have_96_random_bits_each() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch("[0-9a-f]{24}", name) and is_identifier(name) for name in ids)
