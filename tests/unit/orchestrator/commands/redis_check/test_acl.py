"""ACL rules compare equal however a server prints them."""

from __future__ import annotations

import pytest

from tachikoma_orchestrator.commands.redis_check.acl import categories_of, differences, parse_acl

CATEGORIES = {"hash": frozenset({"hget", "hset", "hlen"}), "read": frozenset({"get", "hget"})}


def equal(one: str, other: str) -> bool:
    first, second = parse_acl(one, CATEGORIES), parse_acl(other, CATEGORIES)
    assert (first == second) == (differences(first, second) == "")
    return first == second


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("on ~a +get", "+get ~a on"),
        ("on +@hash -hlen", "on -@all +hget +hset"),
        ("on +@all -@hash", "on +@all -hget -hset -hlen"),
        ("on +@all -hget +hget", "on +@all"),
        ("on -@all +get", "on +get"),
        ("on (~a +get) (~b +get)", "on (+get ~b) (+get ~a)"),
        ("on sanitize-payload resetchannels +get", "on +get"),
    ],
)
def test_equal_rights_compare_equal(one: str, other: str) -> None:
    assert equal(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("on +get", "on +set"),
        ("on ~a +get", "on ~b +get"),
        ("on +get", "on (+get)"),
        ("on +@all", "on +@hash"),
        ("on nopass", "on"),
    ],
)
def test_different_rights_do_not(one: str, other: str) -> None:
    assert not equal(one, other)


def test_enabled_users_and_passwords_are_no_rights() -> None:
    acl = parse_acl("off #aa #bb +get", CATEGORIES)
    assert (acl.enabled, acl.hashes, acl.words) == (False, {"aa", "bb"}, {"+get"})


def test_differences_are_reported_in_both_directions() -> None:
    found, wanted = parse_acl("on +get ~b (+set)", CATEGORIES), parse_acl("on +get ~a (+del)", CATEGORIES)
    assert differences(found, wanted) == "has in addition ~b (+set); lacks ~a (+del)"


def test_categories_are_found_outside_and_inside_of_selectors() -> None:
    assert categories_of("on +@hash -@read +@all (~a +@pubsub)") == {"hash", "read", "pubsub"}
