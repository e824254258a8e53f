"""The profile of an execution: each stage from inside the processes, in the order of time, and its processor time."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from time import monotonic_ns

from system import System

__all__ = ["Waterfall", "measure"]

#: Setting of both parts: the file to which they append the stages.
SETTING = "TACHIKOMA_STAGES"
#: Calls before any is measured.
WARM_UP = 40
#: Name of the whole call, as the client sees it.
CALL = "whole call"
#: Width of the picture, in characters.
WIDTH = 60


class Waterfall:
    """Begin and end of each stage of several executions, in milliseconds after the client's call began."""

    def __init__(self) -> None:
        self._times: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def add(self, name: str, begin_ms: float, end_ms: float) -> None:
        """Add one stage of one execution."""
        self._times[name].append((begin_ms, end_ms))

    def medians(self) -> dict[str, tuple[float, float]]:
        """Return the median begin and the median duration of each stage, those that begin first at the top."""
        found = {
            name: (
                statistics.median(begin for begin, _ in times),
                statistics.median(end - begin for begin, end in times),
            )
            for name, times in self._times.items()
        }
        return dict(sorted(found.items(), key=lambda item: item[1]))

    def print(self, cpu_ms: dict[str, float]) -> None:
        """Print a line with a bar for each stage, and the processor time of each part for one execution."""
        medians = self.medians()
        scale = WIDTH / max(begin + duration for begin, duration in medians.values())
        print(f"{'stage':14} {'begin':>7} {'ms':>7}   median of each, of {len(self._times[CALL])} executions")
        for name, (begin, duration) in medians.items():
            bar = " " * round(begin * scale) + "#" * max(1, round(duration * scale))
            print(f"{name:14} {begin:7.2f} {duration:7.2f}   {bar}")
        print("processor ms of one execution: " + ", ".join(f"{part} {ms:.2f}" for part, ms in cpu_ms.items()))


def read(lines: Iterable[str], calls: dict[str, tuple[int, int]]) -> Waterfall:
    """Return the waterfall of calls.

    Args:
        lines: the stages, as `tachikoma.config.stages.write_to` wrote them.
        calls: begin and end of each call by its execution's id, in nanoseconds of CLOCK_MONOTONIC.
    """
    waterfall = Waterfall()
    for begin_ns, end_ns in calls.values():
        waterfall.add(CALL, 0, (end_ns - begin_ns) / 1e6)
    for line in lines:
        span = json.loads(line)
        if (call := calls.get(span["exec_id"])) is not None:
            begin_ns, _ = call
            waterfall.add(span["stage"], (span["begin_ns"] - begin_ns) / 1e6, (span["end_ns"] - begin_ns) / 1e6)
    return waterfall


async def measure(folder: Path, count: int) -> None:
    """Run this tree's system with its stages switched on, and print the waterfall."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "stages.jsonl"
    system = System("profile", environment={SETTING: str(file)})
    await system.start(folder / "system")
    try:
        for _ in range(WARM_UP):
            await system.call()
        calls, cpu = {}, system.cpu_ms()
        for number in range(count):
            begin = monotonic_ns()
            await system.call(f"profile-{number}")
            calls[f"profile-{number}"] = (begin, monotonic_ns())
        spent = {part: (ms - cpu[part]) / count for part, ms in system.cpu_ms().items()}
    finally:
        await system.stop()
    read(file.read_text().splitlines(), calls).print(spent)
