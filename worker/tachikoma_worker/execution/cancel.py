"""Signed cancels: reading them from Redis and verifying them."""

from __future__ import annotations

from redis.exceptions import RedisError

from tachikoma.config.retry import Backoff
from tachikoma.identity.signed_messages import CancelOrder
from tachikoma.identity.signing import InvalidSignature, verify
from tachikoma.identity.spiffe import agent_id, service_id
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma_worker.execution.context import Context

__all__ = ["as_token", "read_cancel", "read_cancel_until_available", "verify_cancel"]

#: First and longest delay between attempts while Redis is unavailable.
RETRY_SECONDS = (0.05, 2.0)


def verify_cancel(context: Context, exec_id: str, requested_by: str, token: str) -> None:
    """Check that a cancel is genuine and allowed for an execution.

    Args:
        context: the agent.
        exec_id: the execution.
        requested_by: SPIFFE ID of the execution's requester; empty if it is unknown.
        token: compact JWS.

    Raises:
        InvalidSignature: the orchestrator did not sign it, or it is for another agent, execution or requester.
        InvalidIdentity: the name of the orchestrator in the settings is no SPIFFE ID.
    """
    svid = context.identity.current()
    domain = svid.spiffe_id.trust_domain
    issuer = service_id(domain, context.settings.orchestrator)
    # A worker that was restarted may read the cancel of a long command days after it was signed.
    order = verify(token, CancelOrder, svid.bundle, issuer, kept=True)
    if order.aud != str(agent_id(domain, context.agent)) or order.jti != exec_id:
        raise InvalidSignature("is for another agent or execution")
    if order.requested_by and requested_by and order.requested_by != requested_by:
        raise InvalidSignature(f"is by {order.sub}, whose execution it is not")


async def read_cancel(context: Context, exec_id: str) -> str | None:
    """Return the cancel that Redis contains for an execution, not yet verified, or None.

    Raises:
        RedisError, OSError: Redis is unavailable.
    """
    try:
        return as_token(await context.redis.get(keys.cancel(context.agent, exec_id)))
    except RedisError as error:
        if not wrong_type(error):
            raise
        # The orchestrator writes only strings; any other value is no cancel.
        return None


async def read_cancel_until_available(context: Context, exec_id: str) -> str | None:
    """Return as `read_cancel`, after repeating it until Redis is available."""
    backoff = Backoff(*RETRY_SECONDS)
    while True:
        try:
            return await read_cancel(context, exec_id)
        except (RedisError, OSError):
            await backoff.wait()


def as_token(value: bytes | None) -> str | None:
    """Return a value from Redis as the text of a token, which may still be invalid."""
    return None if value is None else value.decode("ascii", "replace")
