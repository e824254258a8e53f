"""The ends of words in a text that may be a shell's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.policy.masking.shell_words import ENDS, ShellText


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("=a b", "a"),
        ("=a;b", "a"),
        ("=a\nb", "a"),
        ("=a'b c'd e", "a'b c'd"),
        ('="a b";c', '"a b"'),
        ("=a\\ b c", "a\\ b"),
        ("=it's fine", "it's"),
        ('="a$(id)b"', '"a'),
        ('="a`id`b"', '"a'),
        ("='a$(id)b' c", "'a$(id)b'"),
        ("= a", ""),
        ("=;a", ""),
        ("=", ""),
        ("=''", "''"),
        ("='", "'"),
        ("'=a b'", "a"),
        ("'=a'b", "a"),
        ("'=\"a b\" c'", '"a b"'),
        ("'=\"a;b\" c'", '"a'),
        ('"=\'a"; b; "\'"', "'a"),
        ("'='\"'\"'a'\"'\"' b'", "'\"'\"'a"),
    ],
)
def test_a_word_ends_where_a_shell_ends_it(text: str, word: str) -> None:
    start = text.index("=") + 1
    assert text[start : ShellText(text).word_end(start)] == word


@given(st.text("ab ;|&'\"=$()`\\\n", max_size=20), st.integers(0, 20))
def test_a_word_is_inside_of_the_text_and_has_no_bare_separator(text: str, start: int) -> None:
    end = ShellText(text).word_end(start)
    assert start <= end <= max(start, len(text))
    if not any(c in text for c in "'\"\\"):
        assert not any(c in ENDS or c.isspace() for c in text[start:end])
