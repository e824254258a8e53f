"""Agents as callers see them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from tachikoma.vocabulary.agents import AgentInfo, AgentTrust, Enrolment, Revocation

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def test_an_unknown_agent_is_offline_and_neither_draining_nor_revoked() -> None:
    agent = AgentInfo(id="web-1")
    assert (agent.online, agent.draining, agent.revoked) == (False, False, False)
    assert (agent.trust, agent.last_seen) == (None, None)


def test_agents_survive_json() -> None:
    trust = AgentTrust(spiffe_id="spiffe://x/agent/web-1", expires=NOW, root="ab", bundle=("ab", "cd"))
    agent = AgentInfo(id="web-1", online=True, last_seen=NOW, labels={"role": "web"}, trust=trust)
    assert AgentInfo.from_dict(agent.to_dict()) == agent
    left = Revocation(agent_id="web-1", cancelled=1, lost=2, warnings=("x",))
    assert Revocation.from_dict(left.to_dict()) == left


def test_a_token_is_not_shown() -> None:
    enrolment = Enrolment(agent_id="web-1", token="tachikoma-join-secret", expires=NOW)
    assert "secret" not in repr(enrolment) + str(enrolment)
    assert Enrolment.from_dict(enrolment.to_dict()) == enrolment


@pytest.mark.parametrize("agent", ["", "a.b", "a:b", "-a", "a" * 64])
def test_an_agent_has_an_id(agent: str) -> None:
    with pytest.raises(ValidationError, match="is not an id"):
        AgentInfo(id=agent)
