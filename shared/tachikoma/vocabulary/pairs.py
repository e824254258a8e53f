"""`NAME=value` as people write it in options: labels of agents and variables of an environment."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["parse_pair", "parse_pairs"]


def parse_pair(text: str) -> tuple[str, str]:
    """Read `NAME=value`; the value may be empty and may contain further equals signs.

    Raises:
        ValueError: the text has no equals sign, or nothing before it.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"{text!r} is not NAME=value")
    return name, value


def parse_pairs(texts: Iterable[str]) -> dict[str, str]:
    """Read several `NAME=value`; of the same name the last one counts.

    Raises:
        ValueError: one of them is not NAME=value.
    """
    return dict(map(parse_pair, texts))
