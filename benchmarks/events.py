"""What Flower costs: commands and processor time that the feed of events adds to an execution: `make bench-events`.

The same executions with nobody listening and with a Flower, in turns in one run, so that both meet the same machine;
compare ratios, not times. How many executions become one message depends on how many there are a second, so it is
measured for one caller after another and for many at once.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis as redis_py

from tachikoma import Client, ExecRequest
from tachikoma.dev.stack import Stack

#: Long enough for what the feed gathers, and for an idle one to ask whether somebody listens.
SETTLE_SECONDS = 1.5


@dataclass(frozen=True)
class Cost:
    """Of one execution."""

    commands: dict[str, float]
    orchestrator_ms: float
    redis_ms: float
    seconds: float

    @property
    def total(self) -> float:
        return sum(self.commands.values())


def _cpu_ms(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system) * 1000


def _calls(redis: redis_py.Redis) -> dict[str, int]:
    return {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in redis.info("commandstats").items()}


def measure(stack: Stack, client: Client, redis: redis_py.Redis, *, count: int, callers: int) -> Cost:
    """Run so many executions, and wait until they are told."""
    pids = stack.orchestrator.pid, stack.redis.pid
    before, cpu = _calls(redis), [_cpu_ms(pid) for pid in pids]
    begin = time.monotonic()
    with ThreadPoolExecutor(callers) as pool:
        for done in pool.map(
            lambda _: client.execute(ExecRequest(agent_id="agent-1", command=("/bin/true",))), range(count)
        ):
            if done.exit_code != 0:
                raise SystemExit("a command failed")
    seconds = time.monotonic() - begin
    time.sleep(SETTLE_SECONDS)
    each = {name: (number - before.get(name, 0)) / count for name, number in _calls(redis).items()}
    orchestrator_ms, redis_ms = ((_cpu_ms(pid) - was) / count for pid, was in zip(pids, cpu, strict=True))
    return Cost(each, orchestrator_ms, redis_ms, seconds)


def _show(name: str, costs: dict[bool, list[Cost]], rate: float) -> None:
    print(f"\n{name}, {rate:.0f} executions a second        nobody listens   with Flower    ratio")

    def line(what: str, pick: str) -> None:
        without, with_ = (statistics.median(getattr(cost, pick) for cost in costs[on]) for on in (False, True))
        print(f"  {what:42} {without:12.2f} {with_:13.2f} {with_ / without:8.2f}")

    line("Redis commands, those inside Lua included", "total")
    line("processor time of the orchestrator, ms", "orchestrator_ms")
    line("processor time of Redis, ms", "redis_ms")
    added: defaultdict[str, float] = defaultdict(float)
    for on, sign in ((True, 1), (False, -1)):
        for cost in costs[on]:
            for command, number in cost.commands.items():
                added[command] += sign * number / len(costs[on])
    # What it gives and takes with the time that a round takes is not the feed's.
    told = {command: number for command, number in added.items() if abs(number) >= 0.01}
    print("  added: " + ", ".join(f"{command} {number:+.2f}" for command, number in sorted(told.items())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="executions in each turn")
    parser.add_argument("--turns", type=int, default=2, help="turns of each kind")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(Path(folder), flower="127.0.0.1:0") as stack,
        Client(stack.profile()) as client,
        redis_py.Redis(**stack.redis_admin) as redis,
    ):
        assert stack.flower is not None
        measure(stack, client, redis, count=50, callers=4)
        for name, callers in (("one caller", 1), ("16 callers", 16)):
            costs: dict[bool, list[Cost]] = {False: [], True: []}
            for _ in range(options.turns):
                for listening in (False, True):
                    if listening:
                        stack.start_flower()
                    else:
                        stack.flower.stop()
                    # Everything is told anew to whoever begins to listen; that is not what an execution costs.
                    time.sleep(SETTLE_SECONDS)
                    costs[listening].append(measure(stack, client, redis, count=options.count, callers=callers))
            rate = options.count / statistics.median(cost.seconds for cost in costs[True])
            _show(name, costs, rate)


if __name__ == "__main__":
    main()
