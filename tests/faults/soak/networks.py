"""Networks that break: with notice, in silence, or in one direction only."""

from __future__ import annotations

from soak.scene import Scene, fault

__all__: list[str] = []


@fault(3)
def cut(scene: Scene) -> None:
    if (victim := scene.victim()) is None:
        return
    relays = scene.world.relays
    relays.do(relays[victim].cut())
    scene.note("cut", victim)
    scene.undo[victim] = lambda: relays.do(relays[victim].mend())


@fault(4)
def silence(scene: Scene) -> None:
    if (victim := scene.victim()) is None:
        return
    relays = scene.world.relays
    up, down = scene.dice.choice(((True, False), (False, True), (True, True)))
    relays.do(relays[victim].silence(up=up, down=down))
    scene.note("silenced", victim)

    def undo() -> None:
        # What was under way arrives late, or never.
        if scene.dice.random() < 0.5:
            relays.do(relays[victim].cut())
        relays.do(relays[victim].mend())

    scene.undo[victim] = undo
