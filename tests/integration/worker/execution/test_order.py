"""Orders: only a genuine one for this agent and this execution is accepted."""

from __future__ import annotations

import time
from typing import Any

import pytest

from authority import Authority
from local_agent import AGENT, DOMAIN, LocalAgent
from tachikoma.identity.signed_messages import WorkOrder
from tachikoma.identity.signing import InvalidSignature, UnreadableMessage, sign
from tachikoma.identity.spiffe import agent_id, service_id
from tachikoma.vocabulary.states import ExecState
from tachikoma_worker import VERSION
from tachikoma_worker.execution.execution import Execution
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


@pytest.mark.parametrize("change", [{"v": 2}, {"v": 0}, {"crit": ("epoch",)}, {"policy": None}, {"v": None}])
async def test_an_order_in_an_unknown_format_ends_at_once_and_never_starts(
    agent: LocalAgent, change: dict[str, Any]
) -> None:
    order = agent.order("/bin/true")
    token = sign(agent.orchestrator, WorkOrder.model_construct(**{**dict(order), **change}))
    with pytest.raises(UnreadableMessage):
        verify_order(agent.context, order.jti, token)
    await Execution.of_order(agent.context, order.jti, token).run()
    receipt = await agent.receipt(order.jti)
    assert receipt is not None
    assert receipt.state is ExecState.REJECTED
    assert receipt.error.startswith("not started: the order ")
    assert f"the worker is version {VERSION}" in receipt.error
    if "v" in change:
        assert f"version {change['v']} of its format, and this program reads version 1" in receipt.error
    # Another delivery changes nothing.
    await Execution.of_order(agent.context, order.jti, token).run()
    assert await agent.receipt(order.jti) == receipt


async def test_an_order_in_an_unknown_format_for_another_agent_is_not_answered(agent: LocalAgent) -> None:
    order = agent.order("/bin/true", order={"aud": str(agent_id(DOMAIN, "web-2"))})
    token = sign(agent.orchestrator, order.model_copy(update={"v": 2}))
    await Execution.of_order(agent.context, order.jti, token).run()
    assert await agent.receipt(order.jti) is None
