"""The lists of programs."""

from __future__ import annotations

from itertools import combinations

from tachikoma.policy.hazards.catalogue import BY_ARGUMENTS, ON_TERMINAL, RUNNERS, SAFE
from tachikoma.policy.hazards.programs import ProgramKind, kind_of

LISTS = {
    ProgramKind.RUNNER: RUNNERS,
    ProgramKind.BY_ARGUMENTS: BY_ARGUMENTS,
    ProgramKind.ON_TERMINAL: ON_TERMINAL,
    ProgramKind.SAFE: SAFE,
}


def test_a_program_is_in_one_list_only() -> None:
    assert not [first & second for first, second in combinations(LISTS.values(), 2) if first & second]


def test_each_name_in_a_list_is_found_there() -> None:
    assert not [name for kind, names in LISTS.items() for name in names if kind_of(f"/usr/bin/{name}") is not kind]
    assert not [name for names in LISTS.values() for name in names if "/" in name or not name.isascii()]
