"""Messages that come twice and in disorder."""

from __future__ import annotations

from redis import Redis

from order_queues import queue_with_orders
from soak.scene import Scene, fault

__all__: list[str] = []

#: Messages that are copied at most. Copies of copies would fill the queue for longer than a caller waits.
MOST = 50


@fault(4)
def disorder(scene: Scene) -> None:
    """Copy what waits on a queue, and mix it up."""
    agent = scene.dice.choice(scene.world.agent_ids)

    def mix(redis: Redis) -> str | None:
        queue = queue_with_orders(redis, agent)
        messages = redis.lrange(queue, 0, MOST - 1)
        if not messages or redis.llen(queue) > 2 * MOST:
            return None
        redis.lpush(queue, *scene.dice.sample(messages, len(messages)))
        return "disordered queue"

    scene.redis_do(mix)
