"""Telling an agent to end what it runs: signed, kept for it, and published."""

from __future__ import annotations

import time

from tachikoma.identity.signed_messages import CancelOrder, sign
from tachikoma.identity.spiffe import agent_id
from tachikoma.identity.svid import SvidSource
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis

__all__ = ["send_cancel"]

#: How long a cancel is kept for its agent: longer than an order can wait and run.
CANCEL_SECONDS = 15 * 24 * 3600


async def send_cancel(
    redis: Redis, identity: SvidSource, agent: str, exec_id: str, *, by: str, requested_by: str
) -> None:
    """Send one.

    Args:
        redis: the connections.
        identity: who signs it.
        agent, exec_id: the execution.
        by: SPIFFE ID of who asks.
        requested_by: whose the execution must be for that; empty where an operator asks.
    """
    svid = identity.current()
    aud = str(agent_id(svid.spiffe_id.trust_domain, agent))
    order = CancelOrder(
        iss=str(svid.spiffe_id), aud=aud, sub=by, requested_by=requested_by, iat=int(time.time()), jti=exec_id
    )
    token = sign(svid, order)
    # First where it stays, then where it is heard at once.
    async with redis.pipeline(transaction=True) as pipe:
        pipe.set(keys.cancel(agent, exec_id), token, ex=CANCEL_SECONDS)
        pipe.publish(keys.control(agent), f"{exec_id} {token}")
        await pipe.execute()
