"""Programs as they are installed on this host: their links are followed, also those of Debian's alternatives.

A link `/usr/bin/editor` leads through `/etc/alternatives/editor` to one of many editors. Its file may have a name that
no list contains. So each name on the way counts, and the names of the groups of which the file is an alternative
(update-alternatives(1)).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache

from tachikoma.policy.hazards.programs import ProgramKind, kind_of, worst

__all__ = ["installed_kind", "links_of"]

#: Where Debian and Red Hat record the groups of alternatives, one file for each.
ALTERNATIVES = ("/var/lib/dpkg/alternatives", "/var/lib/alternatives")
#: Symbolic links that are followed, as many as the kernel follows (path_resolution(7)).
MAX_LINKS = 40
#: Longest record of a group that is read, in bytes.
MAX_RECORD_BYTES = 256 * 1024


def installed_kind(path: str) -> ProgramKind:
    """Return the kind of a program: the worst of its path, its links and its alternatives on this host."""
    names = list(links_of(path))
    groups = [group for folder in ALTERNATIVES for name in names for group in _groups(folder).get(name, ())]
    return worst(kind_of(path), *map(kind_of, names), *map(kind_of, groups))


def links_of(path: str) -> Iterator[str]:
    """Yield the paths that a path leads through, up to the file. Links in folders on the way are resolved."""
    for _ in range(MAX_LINKS):
        folder = os.path.realpath(os.path.dirname(path))  # noqa: PTH120 (a path of a command is a text)
        path = os.path.join(folder, os.path.basename(path))  # noqa: PTH118, PTH119
        yield path
        try:
            target = os.readlink(path)  # noqa: PTH115
        except OSError:
            return
        path = os.path.normpath(os.path.join(folder, target))  # noqa: PTH118


def _groups(folder: str) -> dict[str, tuple[str, ...]]:
    """Return the groups of alternatives that each file belongs to; none if the host has no such folder."""
    try:
        return _read_groups(folder, os.stat(folder).st_mtime_ns)  # noqa: PTH116 (on each start)
    except OSError:
        return {}


@lru_cache(maxsize=4)
def _read_groups(folder: str, _changed_ns: int) -> dict[str, tuple[str, ...]]:
    """Read the records of all groups: lines with the group's links, then lines with the files that may take them."""
    found: dict[str, tuple[str, ...]] = {}
    for entry in os.scandir(folder):
        try:
            with open(entry.path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123
                lines = file.read(MAX_RECORD_BYTES).splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith("/"):
                found[line] = (*found.get(line, ()), entry.name)
    return found
