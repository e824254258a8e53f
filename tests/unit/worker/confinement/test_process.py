"""Killing and releasing a command, against a spawner that answers as it is told."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial

import pytest

from tachikoma.vocabulary.requests import WindowSize
from tachikoma_worker.confinement import process as module
from tachikoma_worker.confinement.process import Process, kill_all
from tachikoma_worker.confinement.protocol import (
    INPUT_BYTES,
    Exit,
    InputMode,
    InputStatus,
    SpawnerGone,
    SpawnFailed,
    Step,
    Survivors,
)

GONE = SpawnFailed(Step.NAME, 3)


class Recorder:
    """Remembers what it was asked, and has so many processes left after each KILL."""

    def __init__(self, *left: list[int], error: Exception | None = None) -> None:
        self.asked: list[tuple[str, ...]] = []
        self._left = list(left) or [[]]
        self._error = error

    async def signal(self, name: str, number: int, *, foreground: bool = False) -> None:
        self._record("foreground" if foreground else "signal", name, signal.Signals(number).name)

    async def send_input(self, name: str, offset: int, data: memoryview) -> None:
        self._record("input", name, f"{offset}+{len(data)}")

    async def end_input(self, name: str, offset: int) -> None:
        self._record("end", name, str(offset))

    async def resize(self, name: str, size: WindowSize) -> None:
        self._record("resize", name, f"{size.rows}x{size.columns}")

    async def hang_up(self, name: str) -> None:
        self._record("hang up", name)

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


class Slow(Recorder):
    """Accepts only some bytes of each request, and then reports room for more."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.command: Process | None = None
        self.content = b""
        self._most = most

    async def send_input(self, name: str, offset: int, data: memoryview) -> None:
        assert self.command is not None
        assert len(data) <= INPUT_BYTES
        assert offset == len(self.content)
        self.content += data[: self._most]
        self.command.on_input(InputStatus(len(self.content), InputMode.PIPE), room=False)
        if len(data) > self._most:
            status = InputStatus(len(self.content), InputMode.PIPE, INPUT_BYTES)
            asyncio.get_running_loop().call_soon(partial(self.command.on_input, status, room=True))


@pytest.mark.parametrize("most", [1000, INPUT_BYTES - 1, INPUT_BYTES])
async def test_input_is_sent_as_fast_as_it_is_accepted_and_each_byte_once(most: int) -> None:
    controls = Slow(most)
    command = controls.command = process(controls)
    content = os.urandom(3 * INPUT_BYTES + 5)
    await command.feed(0, content[: 2 * INPUT_BYTES])
    # The overlap is ignored.
    await command.feed(INPUT_BYTES, content[INPUT_BYTES:])
    await command.feed(0, content[:7])
    assert controls.content == content
    assert command.input.offset == len(content)
    command.leave()


async def test_changes_of_the_input_are_reported_once() -> None:
    command = process(Recorder())
    changes: list[InputStatus] = []
    command.input_changed = lambda: changes.append(command.input)
    states = [InputStatus(4, echo=True), InputStatus(4, echo=True), InputStatus(4, echo=False)]
    for state in states:
        command.on_input(state, room=True)
    assert changes == [states[0], states[2]]
    command.leave()


@pytest.mark.parametrize(("mode", "kind"), [(InputMode.TERMINAL, "foreground"), (InputMode.PIPE, "signal")])
async def test_a_signal_goes_to_the_foreground_of_a_terminal(mode: InputMode, kind: str) -> None:
    controls = Recorder()
    command = process(controls)
    command.on_input(InputStatus(mode=mode), room=False)
    await command.signal_foreground(signal.SIGINT)
    assert controls.asked == [(kind, "job-7", "SIGINT")]
    command.leave()


async def test_a_terminal_that_is_gone_is_no_error() -> None:
    controls = Recorder(error=GONE)
    command = process(controls)
    await command.resize(WindowSize(24, 80))
    await command.hang_up()
    assert controls.asked == [("resize", "job-7", "24x80"), ("hang up", "job-7")]
    with pytest.raises(SpawnFailed):
        await command.end_input(0)
    command.leave()
