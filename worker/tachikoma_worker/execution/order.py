"""Verification of a signed order: nothing in the message around it is trusted."""

from __future__ import annotations

import time

from tachikoma.identity.signed_messages import WorkOrder
from tachikoma.identity.signing import InvalidSignature, UnreadableMessage, verify
from tachikoma.identity.spiffe import agent_id, service_id
from tachikoma_worker.execution.context import Context

__all__ = ["verify_order"]


def verify_order(context: Context, exec_id: str, token: str) -> WorkOrder:
    """Return the order in a token after checking that it is for this agent and this execution.

    Args:
        context: the agent.
        exec_id: the execution that the message names.
        token: compact JWS.

    Raises:
        UnreadableMessage: the orchestrator signed it for this agent and execution in a format that is not known here.
        InvalidSignature: the orchestrator did not sign it, or it is for another agent or execution, or has expired.
        InvalidIdentity: the name of the orchestrator in the settings is no SPIFFE ID.
    """
    svid = context.identity.current()
    domain = svid.spiffe_id.trust_domain
    try:
        order = verify(token, WorkOrder, svid.bundle, service_id(domain, context.settings.orchestrator))
    except UnreadableMessage as error:
        if error.content.get("aud") != str(agent_id(domain, context.agent)) or error.content.get("jti") != exec_id:
            raise InvalidSignature("is for another agent or execution") from None
        raise
    if order.aud != str(agent_id(domain, context.agent)):
        raise InvalidSignature(f"is for {order.aud}, not for this agent")
    if order.jti != exec_id or order.request.id != exec_id or order.request.agent_id != context.agent:
        raise InvalidSignature("is for another execution than its message says")
    if time.time() >= order.exp:
        raise InvalidSignature("has expired")
    return order
