"""The queues of an agent, as tests look at them from outside: an order is on the queue of its requester."""

from __future__ import annotations

from redis import Redis

from tachikoma.redis import keys

__all__ = ["queue_of", "queue_with_orders", "waiting_orders"]


def queue_of(requester: object, agent: str) -> str:
    """Return the queue for a requester's orders. What is put there is read before the requester's later orders."""
    return keys.requester_queue(agent, str(requester), keys.QUEUE_LANES)


def queue_with_orders(redis: Redis, agent: str) -> str:
    """Return the first queue of an agent on which orders wait; the main one if there is none."""
    return next((queue for queue in keys.queues(agent) if redis.llen(queue)), keys.queue(agent))


def waiting_orders(redis: Redis, agent: str) -> int:
    """Return the number of orders on all queues of an agent."""
    return sum(redis.llen(queue) for queue in keys.queues(agent))
