"""Orders: only a genuine one for this agent and this execution is accepted."""

from __future__ import annotations

import time
from typing import Any

import pytest

from authority import Authority
from local_agent import AGENT, DOMAIN, LocalAgent
from tachikoma.identity.signing import InvalidSignature, sign
from tachikoma.identity.spiffe import agent_id, service_id
from tachikoma_worker.execution.order import verify_order


async def test_a_genuine_order_is_returned_as_it_was_signed(agent: LocalAgent) -> None:
    order = agent.order("/bin/true")
    assert verify_order(agent.context, order.jti, sign(agent.orchestrator, order)) == order


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"aud": str(agent_id(DOMAIN, "web-2"))}, "not for this agent"),
        ({"exp": int(time.time()) - 1}, "has expired"),
        ({"jti": "another"}, "another execution than its message says"),
    ],
)
async def test_an_order_for_something_else_is_refused(agent: LocalAgent, fields: dict[str, Any], message: str) -> None:
    order = agent.order("/bin/true", order=fields)
    with pytest.raises(InvalidSignature, match=message):
        verify_order(agent.context, order.request.id, sign(agent.orchestrator, order))


async def test_an_order_that_is_delivered_under_another_id_is_refused(agent: LocalAgent) -> None:
    order = agent.order("/bin/true")
    with pytest.raises(InvalidSignature, match="another execution"):
        verify_order(agent.context, "another", sign(agent.orchestrator, order))


async def test_only_the_orchestrator_may_sign_an_order(agent: LocalAgent, authority: Authority) -> None:
    order = agent.order("/bin/true")
    for signer in (
        authority.svid(str(service_id(DOMAIN, "another"))),
        authority.svid(str(agent_id(DOMAIN, AGENT))),
        Authority().svid(str(service_id(DOMAIN, "orchestrator"))),
    ):
        token = sign(signer, order.model_copy(update={"iss": str(signer.spiffe_id)}))
        with pytest.raises(InvalidSignature):
            verify_order(agent.context, order.jti, token)
