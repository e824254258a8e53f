"""Target expressions: several agents by node sets, wildcards and labels, resolved against the known agents.

| expression | agents |
|---|---|
| `web01`, `web[01-40]`, `web[1-9]!web7` | by name; `,` adds, `!` removes, `&` intersects, `^` is exclusive or |
| `web*`, `db-?` | the known agents whose id matches |
| `role=web`, `role=web,site=b*` | the known agents with all these labels; no operators in the same argument |
| `!EXPRESSION`, `&EXPRESSION` | removes these from the expressions before it, or keeps only them |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from tachikoma.errors import InvalidRequest
from tachikoma.policy.patterns import AgentSelector, PatternError
from tachikoma.targets.nodesets import MAX_NAMES, expand, in_order
from tachikoma.vocabulary.identifiers import is_identifier

__all__ = ["read_lines", "resolve"]

#: An operator, unless it is inside brackets, where a comma separates ranges.
_OPERATOR = re.compile(r"([,!&^])(?![^\[]*\])")
_WILDCARDS = re.compile(r"[*?]")


def resolve(expressions: Iterable[str], known: Mapping[str, Mapping[str, str]]) -> tuple[str, ...]:
    """Return the agents that some expressions name together, each once, in the order of node sets.

    An agent that is named by its id need not be known. Wildcards and labels find known agents only.

    Args:
        expressions: the expressions; their agents are united.
        known: the labels of each known agent, by its id.

    Raises:
        InvalidRequest: an expression cannot be understood, or finds no agent; the message quotes it.
    """
    chosen: set[str] = set()
    for given in expressions:
        text = given.strip()
        if not text:
            raise InvalidRequest("an expression of targets is empty")
        operator = text[0] if text[0] in "!&" else ","
        rest = text.removeprefix(operator).lstrip()
        # Brackets never contain `=`; a label's value may contain any operator.
        found = _by_labels(rest, known) if "=" in rest else _by_names(rest, known)
        chosen = _combine(operator, chosen, found)
        if len(chosen) > MAX_NAMES:
            raise InvalidRequest(f"the targets are more than {MAX_NAMES} agents")
    return tuple(in_order(chosen))


def read_lines(text: str) -> tuple[str, ...]:
    """Return the expressions in the text of a file: separated by white space; `#` begins a comment."""
    return tuple(word for line in text.splitlines() for word in line.partition("#")[0].split())


def _combine(operator: str, left: set[str], right: set[str]) -> set[str]:
    match operator:
        case ",":
            return left | right
        case "!":
            return left - right
        case "&":
            return left & right
        case _:
            return left ^ right


def _by_labels(text: str, known: Mapping[str, Mapping[str, str]]) -> set[str]:
    try:
        selector = AgentSelector(text)
    except PatternError as error:
        raise InvalidRequest(f"labels: {error}") from None
    found = {agent for agent, labels in known.items() if selector.matches(agent, labels)}
    if not found:
        raise InvalidRequest(f"no agent has the labels {text[:80]!r}; `tachikoma agents` shows all labels")
    return found


def _by_names(text: str, known: Mapping[str, Mapping[str, str]]) -> set[str]:
    """Evaluate node sets and operators from left to right, as ClusterShell does."""
    first, *rest = _OPERATOR.split(text)
    chosen = _atom(first, text, known)
    for operator, atom in zip(rest[::2], rest[1::2], strict=True):
        chosen = _combine(operator, chosen, _atom(atom, text, known))
    return chosen


def _atom(atom: str, text: str, known: Mapping[str, Mapping[str, str]]) -> set[str]:
    name = atom.strip()
    if not name:
        raise InvalidRequest(f"{text[:80]!r}: a name is missing before or after an operator")
    if len(name.split()) > 1 and "[" not in name:
        raise InvalidRequest(f"{name[:80]!r} has a space; separate targets by commas, or write several arguments")
    found: set[str] = set()
    for item in expand(name):
        if _WILDCARDS.search(item):
            found |= _matching(item, known)
        elif is_identifier(item):
            found.add(item)
        else:
            raise InvalidRequest(f"{item[:80]!r} is no id of an agent")
    return found


def _matching(pattern: str, known: Iterable[str]) -> set[str]:
    found = {agent for agent in known if fnmatchcase(agent, pattern)}
    if not found:
        raise InvalidRequest(f"no agent matches {pattern[:80]!r}; `tachikoma agents` lists the agents")
    return found
