"""Target expressions: as ClusterShell evaluates them, and resolved against the known agents."""

from __future__ import annotations

import random

import pytest
from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException

from tachikoma.errors import InvalidRequest
from tachikoma.targets.expressions import read_lines, resolve

KNOWN = {
    "web01": {"role": "web", "site": "a"},
    "web02": {"role": "web", "site": "b"},
    "db1": {"role": "db", "site": "b"},
    "db2": {"role": "db", "site": "c"},
}


def test_names_need_not_be_known() -> None:
    assert resolve(["web[01-03]", "other"], KNOWN) == ("other", "web01", "web02", "web03")


@pytest.mark.parametrize(
    ("expressions", "found"),
    [
        (["web*"], "web01 web02"),
        (["*!db?"], "web01 web02"),
        (["role=web"], "web01 web02"),
        (["role=db,site=b"], "db1"),
        (["site=*", "!role=web"], "db1 db2"),
        (["role=web", "&site=b"], "web02"),
        (["role={web,db}", "!db[1-9]"], "web01 web02"),
        (["web*,db1&db*"], "db1"),
        (["web01,web02^web02,db1"], "db1 web01"),
        (["  web01 , db1 "], "db1 web01"),
    ],
)
def test_expressions(expressions: list[str], found: str) -> None:
    assert " ".join(resolve(expressions, KNOWN)) == found


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "empty"),
        ("web01 web02", "separate targets by commas"),
        ("@all", "is no id of an agent"),
        ("mail*", "no agent matches"),
        ("role=mail", "no agent has the labels"),
        ("role=web,web01", "write labels as name=value"),
        ("web01,,web02", "a name is missing"),
        ("web01!", "a name is missing"),
        ("a.b", "is no id of an agent"),
        ("n[08-101]", "is no node set"),
        ("web[1-30000]", "names more than"),
        ("ro*=web", "wildcards only in the value"),
    ],
)
def test_mistakes_are_named(expression: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        resolve([expression], KNOWN)


def test_several_expressions_together_are_bounded() -> None:
    with pytest.raises(InvalidRequest, match="more than 20000 agents"):
        resolve(["a[1-15000]", "b[1-15000]"], {})


def _random_set(pick: random.Random) -> str:
    """Make an expression of node sets: names, ranges with and without zeros, steps, two dimensions, operators."""
    atoms = []
    for _ in range(pick.randint(1, 5)):
        first = pick.randint(0, 30)
        last = first + pick.randint(0, 6)
        width = pick.choice((0, 0, 2, 3))
        span = f"[{first:0{width}}-{last:0{width}}]" if width else f"[{first}-{last}]"
        if pick.random() < 0.2:
            span = span[:-1] + f"/{pick.randint(1, 4)}]"
        if pick.random() < 0.3:
            span = span[:-1] + f",{last + 2:0{width}}]" if width else span[:-1] + f",{last + 2}]"
        name = pick.choice(("web", "db", "n-"))
        shape = pick.random()
        atoms.append(
            f"{name}{first}" if shape < 0.3 else f"{name}{span}" + (f"-r[1-{pick.randint(1, 3)}]" * (shape > 0.85))
        )
    text = atoms[0]
    for atom in atoms[1:]:
        text += pick.choice(",,,!&^") + atom
    return text


@pytest.mark.slow
def test_ten_thousand_random_sets_equal_those_of_clustershell() -> None:
    pick = random.Random(20)
    for _ in range(10_000):
        text = _random_set(pick)
        try:
            theirs = sorted(str(name) for name in NodeSet(text, resolver=RESOLVER_NOGROUP))
        except NodeSetException:
            with pytest.raises(InvalidRequest):
                resolve([text], {})
            continue
        assert sorted(resolve([text], {})) == theirs, text


def test_a_file_has_expressions_and_comments() -> None:
    assert read_lines("# all\nweb[01-02]  db1\n\nrole=db # these too\n") == ("web[01-02]", "db1", "role=db")
