"""Killing and releasing a command, against a spawner that answers as it is told."""

from __future__ import annotations

import os
import signal

import pytest

from tachikoma_worker.confinement import process as module
from tachikoma_worker.confinement.process import Process, kill_all
from tachikoma_worker.confinement.protocol import Exit, SpawnerGone, SpawnFailed, Step, Survivors

GONE = SpawnFailed(Step.NAME, 3)


class Recorder:
    """Remembers what it was asked, and has so many processes left after each KILL."""

    def __init__(self, *left: list[int], error: Exception | None = None) -> None:
        self.asked: list[tuple[str, ...]] = []
        self._left = list(left) or [[]]
        self._error = error

    async def signal(self, name: str, number: int) -> None:
        self._record("signal", name, signal.Signals(number).name)

    async def kill(self, name: str) -> Survivors:
        self._record("kill", name)
        pids = self._left.pop(0) if len(self._left) > 1 else self._left[0]
        return Survivors(len(pids), pids)

    async def release(self, name: str) -> None:
        self._record("release", name)

    def _record(self, *asked: str) -> None:
        self.asked.append(asked)
        if self._error is not None:
            raise self._error


def process(controls: Recorder) -> Process:
    return Process(controls, "job-7", 7, os.open("/dev/null", os.O_RDONLY), os.open("/dev/null", os.O_RDONLY))


async def test_a_command_that_ends_in_its_grace_is_asked_first() -> None:
    controls = Recorder()
    command = process(controls)
    command.exited.set_result(Exit(0, 0, 0.0))
    assert await command.kill(60) == []
    assert controls.asked == [("signal", "job-7", "SIGTERM"), ("kill", "job-7")]
    await command.close()


async def test_killing_is_repeated_until_all_are_gone() -> None:
    controls = Recorder([1, 2], [2], [])
    assert await kill_all(controls, "job-7") == []
    assert controls.asked == [("kill", "job-7")] * 3


async def test_processes_that_stay_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KILL_SECONDS", 0.05)
    assert await kill_all(Recorder([3, 4]), "job-7") == [3, 4]


async def test_a_signal_to_a_group_that_is_gone_is_no_error() -> None:
    command = process(Recorder(error=GONE))
    await command.signal(signal.SIGTERM)
    command.leave()


async def test_a_command_that_has_ended_is_released_and_one_that_runs_is_not() -> None:
    controls = Recorder()
    running, ended, unknown = process(controls), process(controls), process(controls)
    ended.exited.set_result(Exit(0, 0, 0.0))
    unknown.exited.set_exception(SpawnerGone("gone"))
    for command in (running, unknown):
        await command.close()
    assert controls.asked == []
    await ended.close()
    assert controls.asked == [("release", "job-7")]


@pytest.mark.parametrize("error", [GONE, SpawnerGone("gone")])
async def test_a_release_that_fails_is_no_error(error: Exception) -> None:
    command = process(Recorder(error=error))
    command.exited.set_result(Exit(0, 0, 0.0))
    await command.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(command.stdout)
