"""Bounds of policies and rate limits."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tachikoma.vocabulary.policies import ExecPolicy, RateLimitConfig


@pytest.mark.parametrize("timeout", ["0s", "-1s", "169h"])
def test_a_policys_longest_timeout_has_bounds(timeout: str) -> None:
    with pytest.raises(ValidationError, match="at most 7 days"):
        ExecPolicy(name="p", subjects=("s",), agents=("a",), max_timeout=timeout)


@pytest.mark.parametrize("field", ["subjects", "agents"])
def test_a_policy_is_for_somebody_and_some_agent(field: str) -> None:
    with pytest.raises(ValidationError, match="at least 1"):
        ExecPolicy(**{"name": "p", "subjects": ("s",), "agents": ("a",), field: ()})


def test_a_policy_grants_nothing_by_default() -> None:
    policy = ExecPolicy(name="p", subjects=("s",), agents=("a",))
    assert not policy.allowed_commands
    assert not policy.allowed_users
    assert not policy.allowed_work_dirs
    assert not policy.allowed_environment
    assert not policy.allow_interactive
    assert not policy.allow_tty


@pytest.mark.parametrize(
    "values",
    [
        {"requests_per_minute": -1},
        {"concurrent_limit": -1},
        {"queue_size": 0},
        {"queue_size": 1_000_001},
        {"queue_timeout": 0},
        {"queue_timeout": "169h"},
    ],
)
def test_rate_limits_have_bounds(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RateLimitConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kill_grace": "-1s"}, "must be at most 600 seconds"),
        ({"kill_grace": "601s"}, "must be at most 600 seconds"),
        ({"approval_timeout": 0}, "must be longer than zero"),
        ({"require_approval": True}, "requireApproval is set, but approvers is empty"),
        ({"capabilities": ("CAP_NOTHING",)}, "'CAP_NOTHING' is not a capability"),
        ({"executable_sha256": {"/bin/x": ("ab",)}}, "should match pattern"),
        ({"allowed_networks": ("10.0.0.1/8",)}, "is an address in a network; write 10.0.0.0/8"),
    ],
)
def test_other_fields_have_bounds(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ExecPolicy(name="p", subjects=("s",), agents=("a",), **values)


def test_the_longest_values_are_accepted() -> None:
    policy = ExecPolicy(
        name="p", subjects=("s",), agents=("a",), kill_grace="10m", max_timeout="168h", approval_timeout="168h"
    )
    assert ExecPolicy.from_dict(policy.to_dict()) == policy
