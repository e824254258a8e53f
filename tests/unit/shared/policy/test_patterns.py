"""The patterns of policy files."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tachikoma.policy.effort import Effort, TooMuchWork
from tachikoma.policy.patterns import MAX_ALTERNATIVES, MAX_PATTERN, Pattern, PatternError


def matches(pattern: str, text: str) -> bool:
    return Pattern(pattern).matches(text)


# --- one text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("", ""),
        ("a", "a"),
        ("*", ""),
        ("*", "abc"),
        ("*", "a b\n"),
        ("**", ""),
        ("**", "a/b/c"),
        ("a*", "a"),
        ("a*c", "abbc"),
        ("*a*", "bab"),
        ("/var/log/**", "/var/log/a/b"),
        ("/var/log/**", "/var/log/"),
        ("/var/log/*", "/var/log/a"),
        ("/*/x", "/a/x"),
        ("/**/x", "/a/b/x"),
        ("[0-9]", "5"),
        ("[abc]x", "bx"),
        ("[a-cx-z]", "y"),
        ("[*]", "*"),
        ("[.]", "."),
        ("[]]", "]"),
        ("[[]", "["),
        ("{a,b}", "b"),
        ("{a,b}{c,d}", "bd"),
        ("{,x}a", "a"),
        ("x{a}", "xa"),
        ("{status,restart}", "restart"),
        ("-*", "-x"),
        ("--output=*", "--output=x"),
        ("../x", "../x"),
        ("..", ".."),
        ("a..b*", "a..bc"),
        ("*", "..."),
        ("*.service", "nginx.service"),
        ("app-[0-9]", "app-7"),
        ("ä*", "äöü"),
    ],
)
def test_a_pattern_matches(pattern: str, text: str) -> None:
    assert matches(pattern, text)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("", "a"),
        ("a", ""),
        ("a", "A"),
        ("a", "aa"),
        ("a", "a\n"),
        ("a", "\na"),
        ("a", "\u0430"),
        ("a", "a\u200b"),
        # a star stays within its path segment
        ("*", "/"),
        ("*", "a/b"),
        ("/var/log/*", "/var/log/a/b"),
        ("/*/x", "/a/b/x"),
        ("/*/x", "//a/x"),
        # folders whose names begin alike
        ("/var/log/**", "/var/logs/x"),
        ("/var/log/**", "/var/log"),
        ("/var/log/**", "/var/log.d/x"),
        # the way up
        ("/var/log/**", "/var/log/../../etc/shadow"),
        ("/var/log/**", "/var/log/.."),
        ("/var/log/**", "/var/log/a/.."),
        ("/var/log/*", "/var/log/.."),
        ("**", ".."),
        ("**", "../x"),
        ("*", ".."),
        ("[.][.]/x", "../x"),
        ("[.].", ".."),
        (".*", ".."),
        # nothing turns into an option
        ("*", "-x"),
        ("*", "-"),
        ("**", "--output=/etc/passwd"),
        ("[-a]x", "-x"),
        ("{a,*}", "-x"),
        # anchored at both ends
        ("nginx.service", "xnginx.service"),
        ("nginx.service", "nginx.service;id"),
        ("nginx.service", "nginxAservice"),
        ("nginx.service", "nginx.service\n"),
        ("*.service", "nginx.service;id"),
        # sets mean characters, not classes of them
        ("[0-9]", "\u0665"),
        ("[0-9]", "\uff15"),
        ("[0-9]", "10"),
        ("[0-9]", ""),
        ("[a-z]", "A"),
        ("[a-z]", "ä"),
        ("app-[0-9]", "app-$(id)"),
        ("[a-z]*", "/"),
        # braces
        ("{a,b}", "a,b"),
        ("{a,b}", "{a,b}"),
        ("{a,b}", "ab"),
        ("{a,b}", ""),
        ("?", "x"),
        ("a+", "aa"),
        ("a.c", "abc"),
        ("\\d", "5"),
    ],
)
def test_a_pattern_does_not_match(pattern: str, text: str) -> None:
    assert not matches(pattern, text)


@pytest.mark.parametrize(("pattern", "text"), [("--root=*/conf", "--root=../conf"), ("if=**", "if=../../etc/shadow")])
def test_the_way_up_is_not_taken_inside_an_argument_either(pattern: str, text: str) -> None:
    """'Wildcards never match the path segment `..`': also where the path does not begin with the argument."""
    assert not matches(pattern, text)


@pytest.mark.parametrize("pattern", ["/a/*{,x}*", "/a/*{}*", "/a/{*,b}*", "/a/{b,c*}*"])
def test_two_stars_that_braces_bring_together_still_stay_within_a_segment(pattern: str) -> None:
    """Or the pattern is refused; but never does it grant more than each star says."""
    try:
        compiled = Pattern(pattern)
    except PatternError:
        return
    assert not compiled.matches("/a/b/c")


@pytest.mark.parametrize(
    "pattern",
    [
        "[",
        "[]",
        "a[",
        "[a",
        "[!a]",
        "[^a]",
        "[z-a]",
        "***",
        "a****b",
        "{",
        "}",
        "a}b",
        "{a",
        "{a,{b}}",
        "{{a}}",
    ],
)
def test_what_means_nothing_is_refused_with_the_pattern_in_the_message(pattern: str) -> None:
    with pytest.raises(PatternError, match=re.escape(repr(pattern))):
        Pattern(pattern)


def test_a_pattern_has_a_longest_length() -> None:
    assert matches("x" * MAX_PATTERN, "x" * MAX_PATTERN)
    with pytest.raises(PatternError, match="longer than 4096"):
        Pattern("x" * (MAX_PATTERN + 1))


def test_braces_make_no_more_than_so_many_alternatives() -> None:
    assert matches("{a,b}" * 8, "abababab")
    with pytest.raises(PatternError, match=f"more than {MAX_ALTERNATIVES} alternatives"):
        Pattern("{a,b}" * 9)
    with pytest.raises(PatternError, match="more than"):
        Pattern("{" + "," * MAX_ALTERNATIVES + "}")


@pytest.mark.parametrize("pattern", ["{a}" * 1365, "{}" * 2048, "{a" * 1000, "a}" * 1000], ids=lambda text: text[:4])
def test_braces_without_end_are_taken_or_refused_and_nothing_else(pattern: str) -> None:
    try:
        compiled = Pattern(pattern)
    except PatternError:
        return
    assert compiled.matches(pattern.replace("{", "").replace("}", ""))


@given(st.text())
def test_any_text_is_a_pattern_or_refused_as_none(text: str) -> None:
    try:
        pattern = Pattern(text)
    except PatternError:
        return
    assert pattern.text == text


LITERAL = st.text(st.characters(exclude_characters="*[{}\0"), max_size=8) | st.text("ab/.-,]", max_size=8)


@given(LITERAL, LITERAL)
def test_a_pattern_of_literal_text_matches_itself_and_nothing_else(text: str, other: str) -> None:
    pattern = Pattern(text)
    assert pattern.matches(text)
    assert pattern.matches(other) == (text == other)


# --- against an oracle ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """A part of a pattern: how it is written, and what it means."""

    written: str
    #: One regular expression for each alternative.
    regexes: tuple[str, ...]
    literal: bool = False


def _literal(text: str) -> Piece:
    return Piece(text, (re.escape(text),), literal=True)


STARS = [Piece("*", ("[^/]*",)), Piece("**", ("(?s:.)*",))]
OTHERS = [
    *map(_literal, ["a", "b", "/", ".", "-", "..", "a/"]),
    Piece("[ab]", ("[ab]",)),
    Piece("[a-c]", ("[a-c]",)),
    Piece("[.]", ("[.]",)),
    Piece("[-a]", ("[-a]",)),
    Piece("[*]", ("[*]",)),
    Piece("{a,-b}", ("a", "-b"), literal=True),
    Piece("{.,b/}", ("[.]", "b/"), literal=True),
]
PIECES = st.lists(st.sampled_from(STARS + OTHERS), max_size=6).filter(
    lambda pieces: not any(one in STARS and two in STARS for one, two in itertools.pairwise(pieces))
)
TEXTS = st.text("ab/.-*c", max_size=7)


def oracle(pieces: list[Piece], text: str) -> bool:
    """What a pattern means, said in regular expressions, one for each alternative."""
    for choice in itertools.product(*(piece.regexes for piece in pieces)):
        if not re.fullmatch("".join(choice), text):
            continue
        if all(piece.literal for piece in pieces):
            return True
        if ".." in text.split("/"):
            continue
        if text.startswith("-") and not "".join(choice).replace("\\", "").startswith("-"):
            continue
        return True
    return False


@given(PIECES, TEXTS)
def test_the_matcher_agrees_with_a_slow_oracle(pieces: list[Piece], text: str) -> None:
    assert matches("".join(piece.written for piece in pieces), text) == oracle(pieces, text)


@given(PIECES, st.data())
def test_the_matcher_agrees_with_the_oracle_on_texts_that_nearly_match(
    pieces: list[Piece], data: st.DataObject
) -> None:
    expression = "".join(data.draw(st.sampled_from(piece.regexes)) for piece in pieces)
    text = data.draw(st.from_regex(expression, fullmatch=True, alphabet="ab/.-*c"))
    assume(len(text) < 40)
    pattern = "".join(piece.written for piece in pieces)
    assert matches(pattern, text) == oracle(pieces, text)
    cut = data.draw(st.integers(0, len(text)))
    changed = text[:cut] + data.draw(st.sampled_from("ab/.-")) + text[cut + 1 :]
    assert matches(pattern, changed) == oracle(pieces, changed)


@pytest.mark.parametrize("pattern", ["*a" * 20 + "b", "**a" * 20 + "b", "*a**a" * 10 + "b", "[a]*" * 20 + "b"])
@pytest.mark.slow
def test_a_hostile_text_of_ten_thousand_characters_comes_to_an_end(pattern: str) -> None:
    """A matcher that backtracks would need longer than the universe is old."""
    assert not matches(pattern, "a" * 10_000)
    assert matches(pattern, "a" * 10_000 + "b")


# --- what is denied ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["..", "a/../b", "-x", "--a=..", "-", "x"])
def test_in_a_denied_text_wildcards_match_the_way_up_and_options_too(text: str) -> None:
    assert Pattern("**").matches_any(text)
    assert Pattern("{x,**}").matches_any(text)
    assert not Pattern("/**").matches_any(text)


@pytest.mark.parametrize(
    ("pattern", "folder", "below"),
    [
        ("/etc/ssl/*", "/etc", True),
        ("/etc/shadow", "/", True),
        ("/{etc,srv}/x", "/srv", True),
        ("/etc/*", "/etc", False),
        ("/etc/*", "/et", False),
        ("/etc/*", "/srv", False),
        ("/*/x", "/", False),
    ],
)
def test_a_pattern_knows_the_folders_above_it(pattern: str, folder: str, below: bool) -> None:
    assert Pattern(pattern).is_below(folder) is below


def test_matching_stops_when_no_steps_are_left() -> None:
    assert Pattern("*a*b").matches("xaxb", Effort(100))
    with pytest.raises(TooMuchWork):
        Pattern("*a*b").matches("x" * 100, Effort(50))
