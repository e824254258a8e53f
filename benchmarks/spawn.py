"""A fully confined start of one command beside `subprocess.run`, in one run: `make bench-spawn`, as root.

Both run /bin/true with captured output and wait for its end; interleaved, with idle gaps between, since dense loops
hide the kernel's grace periods. Each level of isolation has rows of its own, and so has what is done ahead (checks,
the cgroup) and behind (its removal). Compare ratios, not times.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import tempfile
import time
from asyncio.subprocess import PIPE
from pathlib import Path

from tachikoma.identity.signed_messages import WorkOrder
from tachikoma.vocabulary.grants import Grant, GrantedExecutable
from tachikoma.vocabulary.isolation import Isolation
from tachikoma.vocabulary.limits import ResourceLimits
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_worker.cgroups.detect import detect
from tachikoma_worker.cgroups.hierarchy import Hierarchy
from tachikoma_worker.confinement.isolation.enclosures import Enclosures
from tachikoma_worker.confinement.prepare import prepare
from tachikoma_worker.confinement.spawner import Spawner
from tachikoma_worker.confinement.start import start
from tachikoma_worker.settings import WorkerSettings

PROGRAM = "/bin/true"
LIMITS = ResourceLimits.model_validate({"memory": "256MiB", "cpus": 1, "pids": 64})


def order(level: Isolation) -> WorkOrder:
    request = ExecRequest(agent_id="bench", command=(PROGRAM,))
    grant = Grant(executables=(GrantedExecutable(path=PROGRAM),), limits=LIMITS, isolation=level)
    return WorkOrder(iss="", iat=0, aud="", sub="", exp=0, jti=request.id, policy="", request=request, grant=grant)


async def read_to_end(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def on_readable() -> None:
        if not os.read(descriptor, 65536):
            loop.remove_reader(descriptor)
            done.set_result(None)

    loop.add_reader(descriptor, on_readable)
    await done


def parts_of(level: Isolation) -> tuple[str, str, str]:
    """The measured times of a command at a level: all of the start and the end, before it, and after it."""
    return str(level), f"{level}, ahead", f"{level}, behind"


async def confined(
    spawner: Spawner, cgroups: Hierarchy, enclosures: Enclosures, level: Isolation, gap: float
) -> tuple[float, float, float]:
    """Run a command at a level and return its times, as in `parts_of`."""
    settings = enclosures.settings
    begin = time.perf_counter()
    prepared = await asyncio.to_thread(prepare, order(level), settings, spawner.uid, cgroups, enclosures)
    ahead = time.perf_counter() - begin
    await asyncio.sleep(gap)

    begin = time.perf_counter()
    process = await start(prepared, spawner)
    await asyncio.gather(read_to_end(process.stdout), read_to_end(process.stderr))
    end = await process.exited
    taken = time.perf_counter() - begin
    assert end.exit_code == 0

    begin = time.perf_counter()
    await process.close()
    await asyncio.to_thread(prepared.discard)
    behind = time.perf_counter() - begin
    await asyncio.sleep(gap)
    return taken, ahead, behind


async def measure(count: int, gap: float) -> dict[str, list[float]]:
    names = ("subprocess.run", "asyncio subprocess", *(name for level in Isolation for name in parts_of(level)))
    taken: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        cgroups = detect("bench", name=f"tachikoma-bench-{os.getpid()}", where="top")
        settings = WorkerSettings(agent_id="bench", redis_url="unix:///", identity=Path(folder), data=Path(folder))
        spawner = Spawner.connect(Path(folder) / "spawner.sock")
        enclosures = Enclosures(settings, spawner.abilities())
        spawner.attach()
        print(f"cgroups: {', '.join(sorted(cgroups.controllers)) or 'none'}; spawner runs as uid {spawner.uid}")
        try:
            for _ in range(count):
                begin = time.perf_counter()
                subprocess.run([PROGRAM], capture_output=True, check=True)  # noqa: ASYNC221 (what is measured)
                taken["subprocess.run"].append(time.perf_counter() - begin)
                await asyncio.sleep(gap)

                begin = time.perf_counter()
                child = await asyncio.create_subprocess_exec(PROGRAM, stdout=PIPE, stderr=PIPE)
                await child.communicate()
                taken["asyncio subprocess"].append(time.perf_counter() - begin)
                await asyncio.sleep(gap)

                for level in Isolation:
                    for name, seconds in zip(
                        parts_of(level), await confined(spawner, cgroups, enclosures, level, gap), strict=True
                    ):
                        taken[name].append(seconds)
        finally:
            await spawner.stop()
            cgroups.close()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="of each kind")
    parser.add_argument("--gap", type=float, default=0.05, help="idle seconds between")
    arguments = parser.parse_args()
    taken = asyncio.run(measure(arguments.count, arguments.gap))
    floor = statistics.median(taken["subprocess.run"])
    print(
        f"{PROGRAM + ', ' + str(arguments.count) + ' each':28} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8} {'x floor':>8}"
    )
    for name, times in taken.items():
        p50, p99 = statistics.median(times), statistics.quantiles(times, n=100)[98]
        print(f"{name:28} {p50 * 1e3:8.2f} {p99 * 1e3:8.2f} {max(times) * 1e3:8.2f} {p50 / floor:8.2f}")


if __name__ == "__main__":
    main()
