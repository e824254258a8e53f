"""Cancel orders to agents: signed, stored for the agent, and published."""

from __future__ import annotations

import time
from weakref import WeakKeyDictionary

from tachikoma.identity.signed_messages import CancelOrder
from tachikoma.identity.signing import sign
from tachikoma.identity.spiffe import agent_id
from tachikoma.identity.svid import SvidSource
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma_orchestrator.store.remembered import Remembered

__all__ = ["SentCancels", "send_cancel", "sent_cancels"]

#: How long a cancel order is stored: longer than an execution can wait and run.
CANCEL_SECONDS = 15 * 24 * 3600
#: Time for which a sent order is remembered, in seconds, and largest number of them.
REMEMBERED_SECONDS, MAX_REMEMBERED = 900, 4000


class SentCancels:
    """Remembers the latest cancel orders, to be sent again if Redis loses them. A cancel stays right in every life."""

    def __init__(self) -> None:
        #: Each signed order by agent and execution.
        self._orders: Remembered[tuple[str, str], str] = Remembered(REMEMBERED_SECONDS, MAX_REMEMBERED)

    def remember(self, agent: str, exec_id: str, token: str) -> None:
        """Remember the order that was sent for an execution."""
        self._orders.put((agent, exec_id), token)

    async def write_again(self, redis: Redis) -> None:
        """Send the orders again, after Redis lost data. Raises redis errors.

        Args:
            redis: connections that need not wait for the new life of Redis.
        """
        for order in self._orders:
            await _send(redis, *order.key, order.value)


_sent: WeakKeyDictionary[object, SentCancels] = WeakKeyDictionary()


def sent_cancels(redis: Redis) -> SentCancels:
    """Return the cancel orders that were sent over the connections of a client."""
    return _sent.setdefault(redis.connection_pool, SentCancels())


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
    await _send(redis, agent, exec_id, token)
    sent_cancels(redis).remember(agent, exec_id, token)


async def _send(redis: Redis, agent: str, exec_id: str, token: str) -> None:
    # Stored first: an agent that misses the message finds the order there.
    async with redis.pipeline(transaction=True) as pipe:
        pipe.set(keys.cancel(agent, exec_id), token, ex=CANCEL_SECONDS)
        pipe.publish(keys.control(agent), f"{exec_id} {token}")
        await pipe.execute()
