"""Messages that come twice and in disorder."""

from __future__ import annotations

from redis import Redis

from soak.scene import Scene, fault
from tachikoma.redis import keys

__all__: list[str] = []


@fault(4)
def disorder(scene: Scene) -> None:
    """Copy what waits on a queue, and mix it up."""
    queue = keys.queue(scene.dice.choice(scene.world.agent_ids))

    def mix(redis: Redis) -> str | None:
        messages = redis.lrange(queue, 0, -1)
        if not messages:
            return None
        redis.lpush(queue, *scene.dice.sample(messages, len(messages)))
        return "disordered queue"

    scene.redis_do(mix)
