"""The kinds of programs, by their ability to run other programs, as far as that is known.

No list of this kind is complete. So the rules refuse what is known to be dangerous, and `tachikoma policy check` names
the kind of every granted program, unknown ones included. The reasons are in docs/decisions/0032.
"""

from __future__ import annotations

import re
from enum import Enum

from tachikoma.policy.hazards.catalogue import BY_ARGUMENTS, ON_TERMINAL, RUNNERS, SAFE

__all__ = ["ProgramKind", "kind_of", "worst"]


class ProgramKind(Enum):
    """The kind of a program by its ability to run other programs; the value is a text for people."""

    #: It needs `allowInterpreters`. Where one is allowed, denied commands have no effect (`env rm`, `sh -c rm`).
    RUNNER = "runs other programs"
    #: Some of its arguments start programs, load code or open an editor: granted with literal arguments only.
    BY_ARGUMENTS = "runs other programs with certain arguments"
    #: It starts a pager on a terminal, and the pager a shell: granted without a terminal only.
    ON_TERMINAL = "runs other programs on a terminal"
    SAFE = "known to run no other program"
    UNKNOWN = "unknown: it may run other programs"


#: The target in the name of a compiler or another tool for binaries: x86_64-linux-gnu-gcc-12.
_TARGET = re.compile(r"[a-z0-9_]+-(?:[a-z0-9_]+-)?(?:linux|elf|none|eabi|w64|kfreebsd|gnu)-?[a-z0-9_]*-(?=[a-z])")
#: The version at the end of a name: gcc-12, python3.13t, perl5.36-x86_64-linux-gnu.
_VERSION = re.compile(r"-?[0-9]+(?:[._][0-9]+)*(?:t|d|m)?(?:-[a-z0-9_]+-linux-gnu)?")
#: Names of which only the beginning is known.
_PATTERNS = (
    (
        # Variants of an alternative, the dynamic loader, emulators of one program.
        ProgramKind.RUNNER,
        r"(?:r?vim?|r?g?view|vimdiff|nvim|nano|emacs|ex|less|most|mawk|gawk|java|ruby|lua|nc|ksh|tclsh|wish)[.-][\w.-]+"
        r"|ld(?:-linux.*|-musl.*|-[0-9.]+)?\.so(?:\.[0-9.]+)?"
        r"|qemu-(?!system|img|io|nbd|pr-helper|storage-daemon|bridge-helper|ga)[a-z0-9_]+(?:-static)?",
    ),
    (
        # File systems, filters of packets (--modprobe=), emulated machines.
        ProgramKind.BY_ARGUMENTS,
        r"(?:mkfs|fsck|mount|umount)\.[\w.-]+|(?:ip6?|arp|eb)tables(?:-[a-z-]+)?|xtables-[a-z-]+|qemu-system-[\w-]+",
    ),
)
_COMPILED = tuple((kind, re.compile(pattern)) for kind, pattern in _PATTERNS)
_LISTS = (
    (ProgramKind.RUNNER, RUNNERS), (ProgramKind.ON_TERMINAL, ON_TERMINAL),
    (ProgramKind.BY_ARGUMENTS, BY_ARGUMENTS), (ProgramKind.SAFE, SAFE),
)  # fmt: skip
#: Kinds from the most dangerous one. Nothing is known against an unknown program.
_DANGERS = (ProgramKind.RUNNER, ProgramKind.BY_ARGUMENTS, ProgramKind.ON_TERMINAL)


def kind_of(path: str) -> ProgramKind:
    """Return the kind of a program, by the last part of its path."""
    name = path.rpartition("/")[2]
    plain = _TARGET.sub("", name, count=1) if _TARGET.match(name) else name
    for candidate in (name, plain, _without_version(plain)):
        for kind, names in _LISTS:
            if candidate in names:
                return kind
        for kind, pattern in _COMPILED:
            if pattern.fullmatch(candidate):
                return kind
    return ProgramKind.UNKNOWN


def worst(own: ProgramKind, *others: ProgramKind) -> ProgramKind:
    """Return the kind of a program that has several names.

    Args:
        own: the kind by the name that is granted.
        others: the kinds by its other names. Only a runner's counts more than a safe name: a program with many names,
            such as systemctl as `reboot`, acts by the name that it is called by.
    """
    if ProgramKind.RUNNER in others:
        return ProgramKind.RUNNER
    return own if own is ProgramKind.SAFE else next((kind for kind in _DANGERS if kind in (own, *others)), own)


def _without_version(name: str) -> str:
    found = re.search(rf"(?:{_VERSION.pattern})$", name)
    return name[: found.start()] if found and found.start() else name
