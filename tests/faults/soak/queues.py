"""Messages that come twice and in disorder."""

from __future__ import annotations

from redis import Redis

from soak.scene import Scene, fault
from tachikoma.redis import keys

__all__: list[str] = []

#: Messages that are copied at most. Copies of copies would fill the queue for longer than a caller waits.
MOST = 50


@fault(4)
def disorder(scene: Scene) -> None:
    """Copy what waits on a queue, and mix it up."""
    queue = keys.queue(scene.dice.choice(scene.world.agent_ids))

    def mix(redis: Redis) -> str | None:
        messages = redis.lrange(queue, 0, MOST - 1)
        if not messages or redis.llen(queue) > 2 * MOST:
            return None
        redis.lpush(queue, *scene.dice.sample(messages, len(messages)))
        return "disordered queue"

    scene.redis_do(mix)
