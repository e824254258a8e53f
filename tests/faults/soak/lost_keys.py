"""A Redis that loses keys: one of an execution, one that executions share, or all."""

from __future__ import annotations

from collections.abc import Callable

from redis import Redis
from redis.exceptions import RedisError

from soak.scene import Scene, fault
from tachikoma.redis import keys

__all__ = ["OWN", "delete", "expire", "retype"]

#: A wrong value stays for so long at most; a right one replaces some of them before.
_WRONG_SECONDS = 600
#: The keys of one execution.
OWN: dict[str, Callable[[str, str], str]] = {
    "record": lambda _, exec_id: keys.execution(exec_id),
    "claim": keys.claim,
    "output": keys.output,
    "result": keys.result,
}


def delete(redis: Redis, key: str) -> None:
    redis.delete(key)


def expire(redis: Redis, key: str) -> None:
    redis.pexpire(key, 1)


def retype(redis: Redis, key: str) -> None:
    """Replace a value by one of another type, in one step: a writer in between would find no key."""
    text = redis.type(key) != b"string"
    with redis.pipeline(transaction=True) as pipe:
        pipe.delete(key)
        if text:
            pipe.set(key, "only a string")
        else:
            pipe.rpush(key, "not a string")
        pipe.expire(key, _WRONG_SECONDS)
        pipe.execute()


_WAYS = {"deleted": delete, "expired": expire, "retyped": retype}


@fault(5)
def lose_a_key_of_an_execution(scene: Scene) -> None:
    """Take one key of up to three executions that callers wait for."""
    waiting = sorted(scene.callers.under_way)
    if not waiting:
        return
    chosen = scene.dice.sample(waiting, min(3, len(waiting)))
    name, way = scene.dice.choice(sorted(OWN)), scene.dice.choice(sorted(_WAYS))

    def lose(redis: Redis) -> str:
        scene.hurt(chosen)
        for exec_id in chosen:
            _WAYS[way](redis, OWN[name](scene.callers.agent_of(exec_id), exec_id))
        return f"{way} {name}"

    scene.redis_do(lose)


@fault(2)
def lose_a_shared_key(scene: Scene) -> None:
    """Take an index or a queue. Another type keeps its users out until it is deleted."""
    agent = scene.dice.choice(scene.world.agent_ids)
    names = {
        "index": keys.INDEX, "open executions": keys.OPEN, "queue": scene.dice.choice(keys.queues(agent)),
        "index of an agent": keys.agent_index(agent),
    }  # fmt: skip
    name, way = scene.dice.choice(sorted(names)), scene.dice.choice(sorted(_WAYS))
    key = names[name]
    if key in scene.undo:
        return

    def undo() -> None:
        # No fault of its own, so it is not counted.
        if not scene.redis_do(lambda redis: delete(redis, key)):
            scene.undo[key] = undo

    def lose(redis: Redis) -> str:
        if way == "retyped":
            scene.undo[key] = undo
        _WAYS[way](redis, key)
        return f"{way} {name}"

    scene.redis_do(lose)


@fault(0.2)
def flush(scene: Scene) -> None:
    """Empty Redis."""
    if "redis" in scene.undo:
        return
    scene.examine()
    scene.hurt(scene.callers.begun)
    scene.trail_lost = True
    try:
        with scene.world.direct() as redis:
            redis.flushall()
    except RedisError:
        return
    scene.note("emptied", "redis")
