"""An agent's own policy only takes away."""

from __future__ import annotations

from typing import Any

import pytest

from tachikoma.identity.signed_messages import WorkOrder
from tachikoma.policy.decide import PolicySet
from tachikoma.vocabulary.grants import Grant, GrantedExecutable
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_worker.confinement.prepare import narrowed
from tachikoma_worker.confinement.refusals import Refused

PIN, OTHER = "a" * 64, "b" * 64
BASE = "policies:\n  - name: own\n    subjects: ['**']\n    agents: ['**']\n"


def local(text: str, **request: Any) -> Any:
    policies = PolicySet.parse(BASE + text, "policy.yaml")
    values = {"agent_id": "a", "command": ["/bin/true"], **request}
    return policies.decide(ExecRequest(**values), "spiffe://x/user/u", ["/bin", "/usr/bin"])


def grant(*executables: GrantedExecutable, **values: Any) -> Grant:
    return Grant(executables=executables or (GrantedExecutable(path="/bin/true", named=True),), **values)


def test_an_approval_that_the_agents_own_policy_asks_for_must_have_been_given() -> None:
    boss, asking = "spiffe://x/user/boss", "spiffe://x/user/u"
    text = "    allowedCommands: [/bin/true]\n    requireApproval: true\n    approvers: ['spiffe://x/user/*']\n"
    policies = PolicySet.parse(BASE + text, "policy.yaml")

    def order(approved_by: str) -> WorkOrder:
        request = ExecRequest(id="e", agent_id="a", command=["/bin/true"])
        return WorkOrder(
            iss="o", aud="a", sub=asking, iat=1, exp=2, jti="e", policy="p@1", approved_by=approved_by,
            grant=grant(), request=request,
        )  # fmt: skip

    assert narrowed(order(boss), policies, {}).grant.executables
    for approved_by in ("", asking, "spiffe://other/user/boss"):
        with pytest.raises(Refused, match=r"requires an approval by spiffe://x/user/\*"):
            narrowed(order(approved_by), policies, {})
