"""One command on one machine, by this system and by its peers, all in one run: `make bench`.

Every peer has its own server, and calls are interleaved, so that all meet the same machine: compare ratios, not times.
`--beside NAME=PYTHON` adds this system as it is in another tree, by the Python that has it installed. `--replica` adds
each tree with a replica of its Redis, which confirms what is reported. `--profile` prints the stages of an execution of
this system instead.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from pathlib import Path

from peers import AsyncSsh, Peer, available
from report import Row, print_table, write_json, write_picture
from system import System
from waterfall import measure

#: Calls of each peer before any is measured.
WARM_UP = 40
#: Seconds of rest in which the commands of an idle system are counted.
REST_SECONDS = 10
#: Pauses before a call, in seconds.
GAPS = (0.02, 0.05)


async def latency(peers: list[Peer], rows: dict[str, Row], count: int) -> None:
    """Call each peer in turn; then again with pauses."""
    for peer in peers:
        for _ in range(WARM_UP):
            await peer.call()
    for _ in range(count):
        for peer in peers:
            rows[peer.name].tight.append(await timed(peer))
    for _ in range(count // 2):
        for peer in peers:
            await asyncio.sleep(random.uniform(*GAPS))
            rows[peer.name].gaps.append(await timed(peer))


async def timed(peer: Peer) -> float:
    """Return the milliseconds of one call."""
    begin = time.perf_counter()
    await peer.call()
    return (time.perf_counter() - begin) * 1000


async def throughput(peers: list[Peer], rows: dict[str, Row], rounds: int) -> None:
    """Measure several callers at once, the peers in turn."""
    for _ in range(rounds):
        for callers, count in ((8, 200), (50, 400)):
            for peer in peers:
                rows[peer.name].rates.setdefault(callers, []).append(await peer.run_many(callers, count))


async def costs(system: System, row: Row, count: int) -> None:
    """Measure what executions of this system cost, one after another, and what it costs at rest."""
    with system.redis() as redis:

        def calls() -> dict[str, int]:
            stats = redis.info("commandstats")
            return {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()}

        await asyncio.sleep(1)
        before, cpu, used = calls(), system.cpu_ms(), redis.info("memory")["used_memory_dataset"]
        for _ in range(count):
            await system.call()
        # The audit trail's shipping follows.
        await asyncio.sleep(0.5)
        after, spent, left = calls(), system.cpu_ms(), redis.info("memory")["used_memory_dataset"]
        row.commands = {name: (number - before.get(name, 0)) / count for name, number in after.items()}
        row.cpu_ms = {part: (spent[part] - cpu[part]) / count for part in spent}
        row.redis_bytes = (left - used) / count
        before = calls()
        await asyncio.sleep(REST_SECONDS)
        row.idle_commands = sum(number - before.get(name, 0) for name, number in calls().items()) / REST_SECONDS
    row.memory_mib = system.memory_mib()


async def compare(options: argparse.Namespace, folder: Path) -> list[Row]:
    """Start every peer, measure, and stop every peer."""
    systems = [System("tachikoma")]
    for text in options.beside:
        name, _, python = text.partition("=")
        systems.append(System(name, Path(python)))
    if options.replica:
        systems += [System(system.name, system.python, replica=True) for system in tuple(systems)]
    peers: list[Peer] = [*([] if options.alone else available()), *systems]
    rows = {peer.name: Row(peer.name) for peer in peers}
    started: list[Peer] = []
    try:
        for number, peer in enumerate(peers):
            await peer.start(folder / str(number))
            started.append(peer)
        await latency(peers, rows, options.count)
        await throughput(peers, rows, options.rounds)
        for system in systems:
            await costs(system, rows[system.name], options.count)
    finally:
        for peer in started:
            await peer.stop()
    return list(rows.values())


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=400, help="calls of each peer, one after another")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of many callers at once")
    parser.add_argument(
        "--beside", action="append", default=[], metavar="NAME=PYTHON", help="another tree of this system"
    )
    parser.add_argument("--replica", action="store_true", help="each tree also with a replica of its Redis")
    parser.add_argument("--alone", action="store_true", help="without the other peers")
    parser.add_argument(
        "--profile", action="store_true", help="only this system: print the stages of an execution, from inside"
    )
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"), help="folder for JSON and picture")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.profile:
            asyncio.run(measure(Path(folder), options.count))
            return
        rows = asyncio.run(compare(options, Path(folder)))
    print_table(rows, AsyncSsh.name)
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(rows, options.out / "compare.json")
    write_picture(rows, options.out / "compare.svg")
    print(f"\n{options.out}/compare.json, {options.out}/compare.svg")


if __name__ == "__main__":
    main()
