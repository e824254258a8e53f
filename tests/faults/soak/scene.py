"""What faults are done to, what undoes them, and the registry of their kinds."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from redis import Redis
from redis.exceptions import RedisError
from support import wait_until
from world import Observer, World

from order_queues import waiting_orders
from soak.callers import Callers
from tachikoma import Client, Unavailable
from tachikoma.redis import keys

__all__ = ["FAULTS", "Fault", "Scene", "fault"]


@dataclass(frozen=True)
class Fault:
    """A kind of fault."""

    strike: Callable[[Scene], None]
    #: How often it happens, relative to the others.
    weight: float


#: All kinds, in the order of their modules.
FAULTS: list[Fault] = []


def fault(weight: float) -> Callable[[Callable[[Scene], None]], Callable[[Scene], None]]:
    """Register a function as a kind of fault."""

    def register(strike: Callable[[Scene], None]) -> Callable[[Scene], None]:
        FAULTS.append(Fault(strike, weight))
        return strike

    return register


class Scene:
    """A world in which faults happen, each undone a while later."""

    def __init__(self, world: World, callers: Callers, dice: random.Random, observer: Observer) -> None:
        self.world, self.callers, self.dice = world, callers, dice
        self._observer = observer
        #: What undoes a fault, by what it was done to.
        self.undo: dict[str, Callable[[], None]] = {}
        #: Faults that happened, by their kind and victim.
        self.count: Counter[str] = Counter()
        #: True once Redis lost what belongs to no execution: its audit trail.
        self.trail_lost = False
        #: True once Redis went back to an older state.
        self.forgot = False

    # --- for the run --------------------------------------------------------------------------------------------------

    def strike(self) -> None:
        """Undo a fault, or do another."""
        self.restart_ended()
        if self.undo and self.dice.random() < 0.5:
            self.undo.pop(self.dice.choice(sorted(self.undo)))()
            return
        kind = self.dice.choices(FAULTS, [kind.weight for kind in FAULTS])[0]
        kind.strike(self)

    def mend(self) -> None:
        """Undo everything, and wait until all parts run and take what waits for them.

        A worker whose spawner was killed runs for a while, and takes nothing.
        """
        # A stopped Redis first: it must answer, so that its keys can be set right.
        while self.undo:
            self.undo.pop("redis" if "redis" in self.undo else min(self.undo))()
        self._remove_wrong_values()

        def settled() -> bool:
            self.restart_ended()
            with self.world.direct() as redis:
                waiting = any(waiting_orders(redis, agent) for agent in self.world.agent_ids)
            return not waiting and self.world.all_ready() and not self._wrong_clocks()

        wait_until(settled, "everything runs again", 120)

    def _remove_wrong_values(self) -> None:
        """Remove shared keys of another type: an older state of Redis brings back a fault that was undone before."""
        agents = self.world.agent_ids
        types = {
            b"zset": [keys.INDEX, keys.OPEN, *map(keys.agent_index, agents)],
            b"list": [queue for agent in agents for queue in keys.queues(agent)],
        }
        with self.world.direct() as redis:
            for kind, names in types.items():
                for name in names:
                    if redis.type(name) not in (kind, b"none"):
                        redis.delete(name)

    # --- for faults ---------------------------------------------------------------------------------------------------

    def note(self, kind: str, victim: str) -> None:
        """Count a fault."""
        self.count[f"{kind} {victim}"] += 1

    def victim(self, *more: str) -> str | None:
        """Return a process that nothing was done to, or None; one orchestrator and one agent are always left alone."""
        groups = (self.world.agent_ids, self.world.orchestrators)
        free = [name for group in groups if not any(name in self.undo for name in group) for name in group]
        free += [name for name in more if name not in self.undo]
        return self.dice.choice(free) if free else None

    def redis_do(self, action: Callable[[Redis], str | None]) -> bool:
        """Do something to the content of Redis, unless it is stopped: it would answer only after the stop.

        Args:
            action: returns the kind and the victim of the fault for the count; None if there was nothing to do.

        Returns:
            False if Redis is unavailable.
        """
        if "redis" in self.undo:
            return False
        with suppress(RedisError), self.world.direct() as redis:
            done = action(redis)
            if done is not None:
                self.count[done] += 1
            return True
        return False

    def hurt(self, ids: Iterable[str]) -> None:
        """Note executions whose keys will be lost: the ledger may forget them, but nothing may start them twice."""
        self.callers.hurt.update(ids)

    def examine(self) -> None:
        """Let the observer check all answered executions, before Redis forgets them."""
        jobs = [job for job in self.callers.answered() if job.id not in self.callers.hurt]
        self._observer.check_now(jobs, forgot=self.forgot)

    def restart_ended(self) -> None:
        """Start what has ended by itself.

        A worker whose spawner is gone, or one that another clock made useless; an orchestrator that looked for its
        password while an older state of Redis, passwords included, took the place of the newer one.
        """
        for name, part in {**self.world.agents, **self.world.orchestrators}.items():
            if name not in self.undo and not part.alive:
                part.start()

    # --- alone --------------------------------------------------------------------------------------------------------

    def _wrong_clocks(self) -> bool:
        with suppress(Unavailable), Client(self.world.profile()) as client:
            return any("clock" in warning for agent in client.agents() for warning in agent.warnings)
        return True
