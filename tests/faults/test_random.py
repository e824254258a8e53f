"""Many executions while random faults happen, from a seed that is printed: `make soak`.

TACHIKOMA_TEST_SEED repeats a run's faults; TACHIKOMA_TEST_EXECUTIONS is the number of executions. The folder `soak` has
the faults.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest
import soak
from soak.callers import PATIENCE_SECONDS, Callers, Plan, plans
from soak.scene import FAULTS, Scene
from support import prepare
from world import Observer, World

from tachikoma import ExecState

EXECUTIONS = int(os.environ.get("TACHIKOMA_TEST_EXECUTIONS", "250"))
SEED = int(os.environ.get("TACHIKOMA_TEST_SEED") or random.randrange(10**6))
#: Executions for each fault.
PER_FAULT = 10
#: When no caller was answered for so long, the next fault comes all the same; it may undo what keeps them waiting.
STALL_SECONDS = 0.5

pytestmark = pytest.mark.timeout(400 + EXECUTIONS // 5)


def _strike(scene: Scene, callers: Callers) -> None:
    """Let faults happen until nearly all callers are answered."""
    for number in range(PER_FAULT, EXECUTIONS, PER_FAULT):
        before = time.monotonic()
        while callers.done < number and callers.is_alive() and time.monotonic() - before < STALL_SECONDS:
            time.sleep(0.01)
        scene.strike()


def _wait_for_callers(scene: Scene, callers: Callers, made: list[Plan], observer: Observer) -> None:
    """Wait until every caller is answered."""
    done, since = -1, time.monotonic()
    while callers.is_alive() and time.monotonic() - since < PATIENCE_SECONDS:
        if callers.done > done:
            done, since = callers.done, time.monotonic()
        # A worker whose spawner was killed may end only now.
        scene.restart_ended()
        callers.join(STALL_SECONDS)
    if callers.error is not None:
        raise callers.error
    waiting = [plan.job.id for plan in made if not plan.answer]
    assert not waiting, f"{waiting} have no answer; by the ledger: {observer.states()}"


def _table(rows: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(rows.items()))


def test_whatever_happens_each_execution_has_one_end_and_at_most_one_start(
    tmp_path: Path, redis_server: Path | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print(f"\n{EXECUTIONS} executions, TACHIKOMA_TEST_SEED={SEED}", flush=True)
    dice = random.Random(SEED)
    marks = tmp_path / "marks"
    marks.mkdir()
    world = World(
        prepare(tmp_path), agents=2, orchestrators=2, queue_timeout="6s",
        redis_server=redis_server, environment={"TACHIKOMA_LEASE": "6s"},
    )  # fmt: skip
    soak.clocks.give_clocks(world, tmp_path / "clock.so")
    made = plans(marks, dice, EXECUTIONS, world.agent_ids)
    with world:
        observer = Observer(world, [plan.job for plan in made])
        callers = Callers(world, made, SEED)
        scene = Scene(world, callers, dice, observer)
        callers.start()
        _strike(scene, callers)
        scene.mend()
        _wait_for_callers(scene, callers, made, observer)
        scene.mend()
        with capsys.disabled():
            print("answers:", _table(Counter(plan.answer for plan in made)))
            print(f"faults, which took keys of {len(callers.hurt)} executions:", _table(scene.count), flush=True)
        observer.check(forgot=scene.forgot, hurt=callers.hurt, trail_lost=scene.trail_lost)
    # The run shows something.
    answers = Counter(plan.answer for plan in made)
    assert answers[ExecState.SUCCEEDED] + answers[ExecState.FAILED] > EXECUTIONS / 4
    assert sum(scene.count.values()) > EXECUTIONS / PER_FAULT / 4


def test_every_kind_of_fault_is_registered_once() -> None:
    names = [kind.strike.__name__ for kind in FAULTS]
    assert len(set(names)) == len(names)
    assert {kind.strike.__module__ for kind in FAULTS} == {f"soak.{name}" for name in soak.__all__}
