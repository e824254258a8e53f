"""The rights of Redis users, as rules."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tachikoma.errors import ConfigurationError
from tachikoma.redis import keys, users
from tachikoma.redis.users import Grant, grants_of, rules
from tachikoma.vocabulary.identifiers import ID_PATTERN

IDS = st.from_regex(ID_PATTERN, fullmatch=True)
EVERYBODY = [*users.SERVICES, *users.OPTIONAL, users.agent_user("a1"), users.application_user("n1")]


def test_a_grant_becomes_rules_of_redis() -> None:
    grant = Grant("get set acl|list", read=("a", "b"), write=("b", "c"), channels=("d",))
    assert grant.words() == ["+get", "+set", "+acl|list", "~b", "%R~a", "%W~c", "&d"]


@pytest.mark.parametrize("user", EVERYBODY)
def test_the_rules_of_a_user_begin_from_nothing(user: str) -> None:
    words = rules(user, ["ab", "cd"])
    assert words[:6] == ["reset", "resetchannels", "on", "#ab", "#cd", "-@all"]
    selectors = [word for word in words if word.startswith("(")]
    assert all(word.startswith("(resetchannels -@all +") and word.endswith(")") for word in selectors)
    # Outside of selectors there is no name, except for the administrator.
    plain = [word for word in words[6:] if not word.startswith("(")]
    assert all(word.startswith("+") for word in plain) or user == users.ADMIN


def test_only_the_administrator_may_do_everything() -> None:
    assert rules(users.ADMIN, [])[4:] == ["+@all", "~*", "&*"]
    for user in set(EVERYBODY) - {users.ADMIN}:
        for grant in grants_of(user):
            assert not {"@all", "flushall", "eval", "keys"} & set(grant.commands.split())
            assert "*" not in (*grant.read, *grant.write, *grant.channels)


@pytest.mark.parametrize("user", ["", "agent", "agent.", "agent.a.b", "app.", "root", "default", "Orchestrator"])
def test_other_names_have_no_rights(user: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a Redis user of Tachikoma; they are orchestrator, "):
        grants_of(user)


@given(IDS, IDS, IDS)
def test_an_agent_may_touch_no_name_of_another(agent: str, other: str, exec_id: str) -> None:
    assume(agent != other)
    patterns = [
        pattern
        for grant in grants_of(users.agent_user(agent))
        for pattern in (*grant.read, *grant.write, *grant.channels)
    ]
    foreign = [keys.queue(other), keys.info(other), keys.claim(other, exec_id), keys.result(other, exec_id)]
    foreign += [keys.output(other, exec_id), keys.control(other), keys.AUDIT, keys.execution(exec_id), keys.SUBMIT]
    assert not any(fnmatchcase(name, pattern) for name in foreign for pattern in patterns)


@given(IDS)
def test_an_agent_takes_from_its_queue_and_cannot_push_to_it(agent: str) -> None:
    commands = {
        command
        for grant in grants_of(users.agent_user(agent))
        if keys.queue(agent) in (*grant.read, *grant.write)
        for command in grant.commands.split()
    }
    assert commands == {"brpop"}


@given(IDS)
def test_names_of_applications_are_told_apart(name: str) -> None:
    assert users.is_application(users.application_user(name))
    assert not users.is_application(users.agent_user(name))
    assert not users.is_application(name)


def test_orchestrators_of_the_last_release_may_subscribe_until_they_are_upgraded() -> None:
    # In one command, which Redis allows or refuses as a whole.
    names = {"agent.*:events", "celery-task-meta-*", "orch:ended", "orch:approved", "orch:events:wanted"}
    subscriptions = [grant for grant in grants_of(users.ORCHESTRATOR) if "psubscribe" in grant.commands.split()]
    assert any(names <= set(grant.channels) for grant in subscriptions)
