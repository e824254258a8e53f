"""Cancel orders to agents: signed, stored for the agent, and published."""

from __future__ import annotations

import time

from tachikoma.identity.signed_messages import CancelOrder
from tachikoma.identity.signing import sign
from tachikoma.identity.spiffe import agent_id
from tachikoma.identity.svid import SvidSource
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis

__all__ = ["send_cancel"]

#: How long a cancel order is stored: longer than an execution can wait and run.
CANCEL_SECONDS = 15 * 24 * 3600


async def send_cancel(
    redis: Redis, identity: SvidSource, agent: str, exec_id: str, *, by: str, requested_by: str
) -> None:
    """Send an agent the order to cancel an execution. Raises redis errors.

    Args:
        redis: the connections.
        identity: signs the order.
        agent, exec_id: the execution.
        by: SPIFFE ID of the caller that cancels it.
        requested_by: SPIFFE ID of the requester that the execution must have; empty if an operator cancels it.
    """
    svid = identity.current()
    aud = str(agent_id(svid.spiffe_id.trust_domain, agent))
    order = CancelOrder(
        iss=str(svid.spiffe_id), aud=aud, sub=by, requested_by=requested_by, iat=int(time.time()), jti=exec_id
    )
    token = sign(svid, order)
    # Stored first: an agent that misses the message finds the order there.
    async with redis.pipeline(transaction=True) as pipe:
        pipe.set(keys.cancel(agent, exec_id), token, ex=CANCEL_SECONDS)
        pipe.publish(keys.control(agent), f"{exec_id} {token}")
        await pipe.execute()
