"""Processes that are killed or stopped."""

from __future__ import annotations

from contextlib import suppress

import psutil

from soak.scene import Scene, fault

__all__: list[str] = []


@fault(6)
def kill(scene: Scene) -> None:
    if (victim := scene.victim("redis")) is None:
        return
    world = scene.world
    if victim == "redis":
        scene.callers.doubtful.update(scene.callers.under_way)
    world.kill(victim)
    scene.note("killed", victim)
    part = world.part(victim)
    if victim == "redis":
        part.start()
    else:
        scene.undo[victim] = lambda: part.start() and None


@fault(4)
def stop(scene: Scene) -> None:
    if (victim := scene.victim("redis")) is None:
        return
    process = psutil.Process(scene.world.pid(victim))
    process.suspend()
    scene.note("stopped", victim)
    scene.undo[victim] = process.resume


@fault(1)
def kill_spawner(scene: Scene) -> None:
    agent = scene.dice.choice(scene.world.agent_ids)
    with suppress(LookupError, psutil.NoSuchProcess):
        scene.world.kill(f"{agent}/spawner")
        scene.note("killed", "spawner")
