"""ACL rules of one Redis user, in a form in which equal rights compare equal.

Redis prints rules in various forms: 7.0 prints `+@hash -hlen -hscan` for a user that was given each command by name. So
categories are expanded to their commands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["Acl", "categories_of", "differences", "parse_acl"]

#: Words without a meaning of their own: the server prints them for every user, or `Acl` has a field for them.
_EMPTY_WORDS = {"reset", "resetchannels", "sanitize-payload", "alldbs", "on", "off"}


@dataclass(frozen=True, slots=True)
class Acl:
    """The rules of one user."""

    #: Whether the user may connect.
    enabled: bool
    #: SHA-256 of each password, in hexadecimal.
    hashes: frozenset[str]
    #: Rules for keys, channels and commands, the commands one by one.
    words: frozenset[str]
    #: The same, for each selector.
    selectors: frozenset[frozenset[str]]


def categories_of(text: str) -> set[str]:
    """Return the categories of commands that rules mention."""
    return {word[2:] for word in text.replace(")", " ").split() if word[:2] in ("+@", "-@")} - {"all"}


def parse_acl(text: str, categories: Mapping[str, frozenset[str]]) -> Acl:
    """Read the rules that follow `user <name>` in `ACL LIST` and in ACL files.

    Args:
        text: the rules.
        categories: commands of each category that the rules mention (`ACL CAT`).
    """
    # Text outside and inside of parentheses alternates; parentheses are never nested.
    pieces = [piece.split() for piece in text.replace(")", "(").split("(")]
    root = [word for words in pieces[::2] for word in words]
    return Acl(
        enabled="on" in root,
        hashes=frozenset(word[1:] for word in root if word.startswith("#")),
        words=_expanded([word for word in root if not word.startswith("#")], categories),
        selectors=frozenset(_expanded(words, categories) for words in pieces[1::2]),
    )


def differences(found: Acl, wanted: Acl) -> str:
    """Return in words how rights differ; empty if they are equal."""

    def shown(words: Iterable[str], selectors: Iterable[frozenset[str]]) -> str:
        return " ".join([*sorted(words), *sorted(f"({' '.join(sorted(selector))})" for selector in selectors)])

    parts = [
        (shown(found.words - wanted.words, found.selectors - wanted.selectors), "has in addition"),
        (shown(wanted.words - found.words, wanted.selectors - found.selectors), "lacks"),
    ]
    return "; ".join(f"{verb} {text}" for text, verb in parts if text)


def _expanded(words: Iterable[str], categories: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """Apply the rules for commands in their order, and return the resulting commands with all other rules."""
    others: set[str] = set()
    allowed: set[str] = set()
    #: Commands that were taken away, after all were allowed.
    denied: set[str] = set()
    for word in words:
        sign, name = word[0], word[1:]
        if sign not in "+-":
            others.add(word)
            continue
        if name == "@all":
            allowed, denied = ({"@all"} if sign == "+" else set()), set()
            continue
        commands = categories.get(name[1:], frozenset()) if name.startswith("@") else {name}
        if sign == "+":
            denied -= commands
            allowed |= set() if "@all" in allowed else commands
        else:
            allowed -= commands
            denied |= commands if "@all" in allowed else set()
    return frozenset({*others, *(f"+{name}" for name in allowed), *(f"-{name}" for name in denied)}) - _EMPTY_WORDS
