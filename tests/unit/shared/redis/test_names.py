"""The table of names: complete, and in agreement with the ACL rules."""

from __future__ import annotations

import inspect
from fnmatch import fnmatchcase
from types import FunctionType

import pytest

from tachikoma.redis import keys, users
from tachikoma.redis.names import NAMES, Kind, Name, Part, markdown_table

#: Arguments for the functions of `keys`, by the names of their parameters, as the table writes them.
ARGUMENTS = {
    "agent": "<id>",
    "exec_id": "<exec>",
    "sink": "<sink>",
    "kind": "<kind>",
    "application": "<name>",
    "task": "<uuid>",
    "run": "<run>",
    "lane": "<lane>",
    "queue": "<queue>",
    "name": "<schedule>",
    "batch_id": "<batch>",
}
#: Functions of `keys` that make no name in Redis.
OTHER_FUNCTIONS = {
    *(
        "node",
        "task_id",
        "application_task_id",
        "split_task_id",
        "execution_of_channel",
        "agent_of_channel",
        "reply_lane",
        "reports_to",
        "queues",
        "requester_queue",
    ),
}
#: Constants of `keys` that are no name in Redis, or a pattern of names that functions make.
OTHER_CONSTANTS = {
    *("EXECUTE_TASK", "DUE_TASK", "ALL_OWN_RESULTS", "ALL_EVENTS", "ALL_INFO", "ALL_CELERY_EVENTS"),
    *("ALL_OURS", "ALL_QUEUES"),
}
#: Variable parts of names that differ from the parameter's.
WRITTEN = {"<scope>": {"scope"}, "<agent>": {"enrolment", "agent_index"}}


def made_by_keys() -> set[str]:
    """Every name that `keys` makes, as the table writes it."""
    made: set[str] = set()
    for name in keys.__all__:
        value = getattr(keys, name)
        if isinstance(value, FunctionType) and name not in OTHER_FUNCTIONS:
            special = next((part for part, functions in WRITTEN.items() if name in functions), "")
            found = value(*(special or ARGUMENTS[parameter] for parameter in inspect.signature(value).parameters))
            made |= {found} if isinstance(found, str) else set(found)
        elif isinstance(value, str) and name not in OTHER_CONSTANTS:
            made.add(value)
    return made


def test_the_table_lists_every_name_once() -> None:
    listed = [name.pattern for name in NAMES]
    assert len(set(listed)) == len(listed)
    assert set(listed) == made_by_keys()


def test_every_function_and_constant_of_keys_is_public() -> None:
    defined = {
        name
        for name, value in vars(keys).items()
        if not name.startswith("_") and isinstance(value, (FunctionType, str, int)) and name != "annotations"
    }
    assert defined == set(keys.__all__)


#: The user of each part, by which its rights are looked up.
USERS = {
    Part.AGENT: users.agent_user("a1"),
    Part.ORCHESTRATOR: users.ORCHESTRATOR,
    Part.SUBMITTER: users.SUBMITTER,
    Part.BEAT: users.BEAT,
    Part.FLOWER: users.FLOWER,
    Part.APPLICATION: users.application_user("n1"),
    Part.CHECK: users.CHECK,
    Part.ENROLLER: users.ENROLLER,
}
#: An example of each variable part.
EXAMPLES = {
    **{"<id>": "a1", "<agent>": "a1", "<exec>": "e1", "<scope>": "agent-a1", "<sink>": "s1", "<kind>": "task"},
    **{"<batch>": "b1", "<schedule>": "s1", "<run>": "r1", "<name>": "n1", "<queue>": keys.SUBMIT, "*": "x"},
    "<lane>": "7",
    "<uuid>": "6f1c2f0e-4b52-4f6e-8a0f-0d3c8e7f1a2b",
}
#: Some commands of each type, to see that rights fit it.
COMMANDS = {
    Kind.STRING: {"get", "set", "incr", "exists"},
    Kind.HASH: {"hget", "hset", "hkeys", "hgetall"},
    Kind.LIST: {"lpush", "rpush", "brpop", "llen", "del"},
    Kind.SET: {"sadd", "srem", "scard"},
    Kind.SORTED_SET: {"zadd", "zrem", "zrange", "zcard"},
    Kind.STREAM: {"xadd", "xrange", "xrevrange", "xread"},
    Kind.CHANNEL: {"publish", "subscribe", "psubscribe"},
}


def example(name: Name) -> str:
    text = name.pattern
    for part, value in EXAMPLES.items():
        text = text.replace(part, value)
    return text


def rights(part: Part, name: Name) -> set[str]:
    """The commands that a part may use on a name; without those of scripts, whose commands are checked one by one."""
    text, found = example(name), set()
    for grant in users.grants_of(USERS[part]):
        patterns = {*grant.read, *grant.write}
        if name.pattern not in ("agent.<id>", "agent.<id>:queue:<lane>"):
            # Meant for queues only; no pattern of Redis tells them from the agents' other names.
            patterns.discard(keys.ALL_QUEUES)
        in_keys = set(name.kinds) != {Kind.CHANNEL} and any(fnmatchcase(text, pattern) for pattern in patterns)
        in_channels = Kind.CHANNEL in name.kinds and any(fnmatchcase(text, pattern) for pattern in grant.channels)
        if in_keys or in_channels:
            found |= set(grant.commands.split()) - {"evalsha"}
    return found


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.pattern)
def test_the_rights_to_a_name_are_those_of_its_owner_and_users(name: Name) -> None:
    permitted = {part for part in Part if rights(part, name)}
    unused = {name.owner} - permitted
    assert permitted - {name.owner} == set(name.others)
    # An application's own workers, which take its callbacks, have users that their operator makes.
    assert unused <= {Part.APPLICATION}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.pattern)
def test_the_rights_to_a_name_fit_its_type(name: Name) -> None:
    if Kind.SEVERAL in name.kinds:
        return
    fitting = set().union(*(COMMANDS[kind] for kind in name.kinds))
    for part in Part:
        found = rights(part, name)
        assert not found or found & fitting, part
    for kind in name.kinds:
        assert any(rights(part, name) & COMMANDS[kind] for part in Part), kind


def test_the_documentation_has_a_row_for_each_name() -> None:
    lines = markdown_table().splitlines()
    assert len(lines) == len(NAMES) + 2
    assert len({line.count("|") for line in lines}) == 1
    assert "| `agent.<id>` | list | agent | orchestrator, enroller | the agent's queue of Celery messages |" in lines
