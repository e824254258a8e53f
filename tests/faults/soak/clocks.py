"""Clocks of agents that jump while they run, by a little or by more than the product accepts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from world import World

from soak.scene import Scene, fault

__all__ = ["give_clocks"]

#: Seconds that a clock is off.
_JUMPS = (-3600, -90, -45, -5, 5, 45, 90, 3600)


def give_clocks(world: World, library: Path) -> None:
    """Let the agents of a world that was not started read their clocks through a library that a fault can move."""
    compiler = os.environ.get("CC", "cc")
    source = Path(__file__).parent.with_name("clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source)], check=True)
    for agent in world.agent_ids:
        offset = _offset_file(world, agent)
        offset.parent.mkdir(parents=True, exist_ok=True)
        offset.write_bytes(bytes(8))
        world.more_environment[agent] = {"LD_PRELOAD": str(library), "CLOCK_FILE": str(offset)}


def _offset_file(world: World, agent: str) -> Path:
    return world.data / "clocks" / agent


def _set_clock(world: World, agent: str, seconds: int) -> None:
    # In place: the agent's processes have mapped the file.
    with _offset_file(world, agent).open("r+b", buffering=0) as file:
        file.write(seconds.to_bytes(8, "little", signed=True))


@fault(2)
def jump(scene: Scene) -> None:
    agent = scene.dice.choice(scene.world.agent_ids)
    name = f"clock of {agent}"
    if name in scene.undo:
        return
    seconds = scene.dice.choice(_JUMPS)
    _set_clock(scene.world, agent, seconds)
    scene.note(f"moved by {seconds:+} s", "clock")
    scene.undo[name] = lambda: _set_clock(scene.world, agent, 0)
