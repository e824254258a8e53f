"""Node sets: `web[01-40]` for forty names, in the syntax of ClusterShell and by its library.

The library is imported when a node set is used, since that takes 15 ms. Its groups are off: they would be read from
files of this host, so `@all` could mean other hosts than the known agents (`RESOLVER_NOGROUP`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from tachikoma.errors import InvalidRequest
from tachikoma.vocabulary.identifiers import is_identifier

__all__ = ["MAX_NAMES", "expand", "fold", "in_order"]

#: Largest number of names that one expression may have. It is counted before any of them is made.
MAX_NAMES = 20_000
#: Largest number of characters of one expression.
MAX_CHARACTERS = 400_000

_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_RANGE = re.compile(r"\s*([0-9]+)(?:-([0-9]+))?(?:/([0-9]+))?\s*")
#: Largest number of digits of a number in a range; Python would convert longer ones slowly.
_DIGITS = 18


def expand(text: str) -> list[str]:
    """Return the names of a node set without operators, as `web[01-40]` or `rack[1-3]-node[1-8]`.

    The names may contain the wildcards `*` and `?`, which are not interpreted here.

    Raises:
        InvalidRequest: the text is no node set, or has more than `MAX_NAMES` names.
    """
    if _size(text) > MAX_NAMES:
        raise InvalidRequest(f"{text[:80]!r} names more than {MAX_NAMES} agents")
    return [str(name) for name in _parse(text)]


def fold(names: Iterable[str]) -> str:
    """Return the shortest node set of some names: `web[01-03],db1`. Names that are no agent's id are left out."""
    valid = [name for name in names if is_identifier(name)]
    library = _library()
    return str(library.NodeSet.fromlist(valid, resolver=library.RESOLVER_NOGROUP))


def in_order(names: Iterable[str]) -> list[str]:
    """Return names in the order of node sets, each once: numbers by their value, as `web2` before `web10`.

    Args:
        names: ids of agents.
    """
    library = _library()
    return [str(name) for name in library.NodeSet.fromlist(list(names), resolver=library.RESOLVER_NOGROUP)]


def _library() -> Any:
    return import_module("ClusterShell.NodeSet")


def _parse(text: str) -> Any:
    library = _library()
    try:
        return library.NodeSet(text, resolver=library.RESOLVER_NOGROUP)
    except library.NodeSetException as error:
        raise InvalidRequest(f"{text[:80]!r} is no node set: {error}") from None


def _size(text: str) -> int:
    """Return the number of names in a node set without operators; the names themselves are not created."""
    if len(text) > MAX_CHARACTERS:
        raise InvalidRequest(f"{text[:80]!r}… is longer than {MAX_CHARACTERS} characters")
    if "[" in (outside := _BRACKETS.sub("", text)) or "]" in outside:
        raise InvalidRequest(f"{text[:80]!r} is no node set: a bracket is not closed, not opened, or inside another")
    size = 1
    for body in _BRACKETS.findall(text):
        size *= max(1, sum(_range_size(part, text) for part in body.split(",")))
        if size > MAX_NAMES:
            break
    return size


def _range_size(part: str, text: str) -> int:
    match = _RANGE.fullmatch(part)
    if match is None:
        # The library would read more than it says: signs, `_`, and digits of other scripts, so what is counted here
        # would not be what it makes. For five numbers it raises a ValueError.
        raise InvalidRequest(
            f"{text[:80]!r} is no node set: {part[:40]!r} is no range as `1-9`, `01-40`, `0-10/2` or `7`"
        )
    first, last, step = match.groups()
    if any(number is not None and len(number) > _DIGITS for number in (first, last, step)):
        raise InvalidRequest(f"{text[:80]!r}: numbers of a node set have at most {_DIGITS} digits")
    if last is None or int(step or 1) == 0:
        return 1
    return max(0, int(last) - int(first)) // int(step or 1) + 1
