"""Terminals by this system, by OpenSSH and by asyncssh, all in one run: `make bench-terminals`.

Every way has its own server, and the ways take turns, so that all meet the same machine: compare ratios, not times.
Prints a table for each measurement, and writes all of them into a JSON file. `--only NAME` takes one measurement.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

sys.path.insert(0, str(Path(__file__).parents[1] / "compare"))

from peers import Sshd
from report import percentiles
from system import System
from ways import AsyncSshLibrary, Library, Line, Program, PtyLine, Way, ssh_program, system_program

from tachikoma import AsyncClient
from tachikoma.client.profile import Profile

#: Values of each way by the name of the column.
Rows: TypeAlias = dict[str, dict[str, float]]

#: Seconds between two keys: with gaps, and of fast typing.
GAP_SECONDS, FAST_SECONDS = 0.1, 0.005
#: What the terminal of a measurement runs: sends each byte back, without an echo of its own.
ECHO = ("sh", "-c", "stty raw -echo; echo ready; exec cat")
LINE = b"a line of output that is neither long nor short\n"
SHELL = ("env", "PS1=ready> ", "bash", "--norc", "--noprofile", "--noediting")
#: The row to which a measurement is compared.
REFERENCES = {"keys": "asyncssh", "output": "ssh", "stdin": "ssh", "interrupt": "ssh"}
#: Bytes that a slow terminal shows in a second, and in one step.
SLOW_BYTES, STEP_BYTES = 200_000, 2_000


class _Sshd(Sshd):
    """The server alone."""

    name = "sshd"

    async def call(self) -> None:
        raise NotImplementedError


# --- keys -------------------------------------------------------------------------------------------------------------


async def keys_with_gaps(lines: dict[str, Line], count: int) -> dict[str, list[float]]:
    """Type one key at a time at each terminal in turn, and return the milliseconds until it came back."""
    times: dict[str, list[float]] = {name: [] for name in lines}
    for _ in range(count):
        for name in random.sample(list(lines), len(lines)):
            await asyncio.sleep(GAP_SECONDS)
            begin = time.perf_counter()
            await lines[name].write(b"x")
            await lines[name].read()
            times[name].append((time.perf_counter() - begin) * 1000)
    return times


async def keys_fast(line: Line, count: int) -> list[float]:
    """Type without waiting for the echo, and return the milliseconds until each key came back."""
    typed: list[float] = []
    seen: list[float] = []

    async def read() -> None:
        while len(seen) < count:
            data = await line.read()
            seen.extend([time.perf_counter()] * len(data))

    reading = asyncio.ensure_future(read())
    for _ in range(count):
        typed.append(time.perf_counter())
        await line.write(b"x")
        await asyncio.sleep(FAST_SECONDS)
    await reading
    return [(end - begin) * 1000 for begin, end in zip(typed, seen, strict=True)]


async def keys(ways: list[Way], count: int) -> Rows:
    """Measure from a key to its echo."""
    async with AsyncExitStack() as stack:
        lines: dict[str, Line] = {way.name: await stack.enter_async_context(way.open(*ECHO)) for way in ways}
        for line in lines.values():
            await line.until(b"ready")
            for _ in range(20):
                await line.write(b"x")
                await line.until(b"x")
        gaps = await keys_with_gaps(lines, count)
        fast: dict[str, list[float]] = {name: [] for name in lines}
        for _ in range(3):
            for name, line in lines.items():
                fast[name] += await keys_fast(line, count)
    rows: Rows = {}
    for name in lines:
        with_gaps, typing = percentiles(gaps[name]), percentiles(fast[name])
        rows[name] = {
            "gaps p50 ms": with_gaps["p50"], "gaps p99": with_gaps["p99"],
            "fast p50 ms": typing["p50"], "fast p99": typing["p99"],
        }  # fmt: skip
    return rows


# --- bulk -------------------------------------------------------------------------------------------------------------


async def output(ways: list[Way], size: int, rounds: int) -> Rows:
    """Measure a large output through a terminal."""
    script = (
        f"stty raw -echo; echo ready; dd bs=1 count=1 of=/dev/null 2>/dev/null; "
        f"yes '{LINE.decode().strip()}' | head -c {size}"
    )
    expected = zlib.crc32(LINE * (size // len(LINE)) + LINE[: size % len(LINE)])
    rates: dict[str, list[float]] = {way.name: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            async with way.open("sh", "-c", script) as line:
                await line.until(b"ready\n")
                begin, received, check = time.perf_counter(), 0, 0
                await line.write(b"g")
                while received < size and (data := await line.read()):
                    check = zlib.crc32(data, check)
                    received += len(data)
                rates[way.name].append(_rate(way, size, begin))
                if (received, check) != (size, expected):
                    raise SystemExit(f"{way.name}: {received} bytes of {size} came, or other ones")
    return {name: {"MB/s": statistics.median(found)} for name, found in rates.items()}


def _rate(way: Way, size: int, begin: float) -> float:
    """Return MB/s since a moment, and show it meanwhile."""
    rate = size / (time.perf_counter() - begin) / 1e6
    print(f"  {way.name}: {rate:.1f} MB/s", file=sys.stderr, flush=True)
    return rate


async def stdin(ways: list[Way], size: int, rounds: int, folder: Path) -> Rows:
    """Measure a large standard input."""
    content = folder / "content"
    with content.open("wb") as file:
        file.truncate(size)
    digest = (await _run("sha256sum", str(content))).split()[0]
    rates: dict[str, list[float]] = {way.name: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            begin = time.perf_counter()
            result = await way.feed(content, "sha256sum")
            rates[way.name].append(_rate(way, size, begin))
            if result.split()[0] != digest:
                raise SystemExit(f"{way.name}: the digest of the input is another one")
    return {name: {"MB/s": statistics.median(found)} for name, found in rates.items()}


async def _run(*command: str) -> bytes:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    found, _ = await process.communicate()
    return found


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


async def interrupt(ways: list[Program], count: int) -> Rows:
    """Measure from Ctrl-C to the prompt while `yes` writes, at a terminal that is fast and at one that is slow."""
    rows: Rows = {}
    for way in ways:
        row = rows[way.name] = {}
        for name, rate in (("fast", None), ("slow", SLOW_BYTES)):
            times = []
            async with way.open(*SHELL) as line:
                await line.until(b"ready> ")
                for _ in range(count):
                    times.append(await _interrupted(line, rate))
            row[f"{name} p50 ms"], row[f"{name} max"] = statistics.median(times), max(times)
    return rows


async def _interrupted(line: PtyLine, rate: int | None) -> float:
    await line.write(b"yes\r")
    end = time.perf_counter() + 1.5
    due = time.perf_counter()
    shown, pressed = b"", None
    while True:
        if rate is None:
            data = await line.read()
        else:
            due = max(due + STEP_BYTES / rate, time.perf_counter() - 0.05)
            await asyncio.sleep(max(0, due - time.perf_counter()))
            data = await line.read(STEP_BYTES)
        if pressed is None:
            if time.perf_counter() > end:
                await line.write(b"\x03")
                pressed = time.perf_counter()
            continue
        shown = (shown + data)[-4096:]
        if b"ready> " in shown:
            return (time.perf_counter() - pressed) * 1000


# --- memory -----------------------------------------------------------------------------------------------------------


async def memory(client: AsyncClient, system: System, count: int) -> Rows:
    """Measure the memory of each process with idle sessions, at which a shell waits."""
    before = system.memory_mib()
    async with AsyncExitStack() as stack:
        for _ in range(count // 20):
            opened = [await stack.enter_async_context(Library(client).open(*SHELL)) for _ in range(20)]
            await asyncio.gather(*(line.until(b"ready> ") for line in opened))
        after = system.memory_mib()
    return {
        part: {"idle MiB": idle, f"with {count}": after[part], "KiB each": (after[part] - idle) * 1024 / count}
        for part, idle in before.items()
    }


# --- the run ----------------------------------------------------------------------------------------------------------

Measurement: TypeAlias = Callable[[], Awaitable[Rows]]


async def run(options: argparse.Namespace, folder: Path) -> dict[str, Rows]:
    """Start every way, measure, and stop every way."""
    async with AsyncExitStack() as stack:
        system = System("tachikoma", environment={"TACHIKOMA_SLOTS": "256"})
        await system.start(folder / "system")
        stack.push_async_callback(system.stop)
        client = await stack.enter_async_context(AsyncClient(Profile(**system.facts["profile"])))
        programs = [system_program(system, folder)]
        ways: list[Way] = [*programs, Library(client)]
        if shutil.which("ssh") and Path("/usr/sbin/sshd").exists():
            server = _Sshd()
            await server.start(folder / "ssh")
            stack.push_async_callback(server.stop)
            programs.insert(0, ssh_program(server))
            ways.insert(0, programs[0])
            if find_spec("asyncssh"):
                ways.insert(1, await stack.enter_async_context(AsyncSshLibrary.connected(server)))
        # In bulk, the library differs little from its program.
        bulk = [way for way in ways if not isinstance(way, Library)]
        measurements: dict[str, Measurement] = {
            "keys": lambda: keys(ways, options.keys),
            "output": lambda: output(bulk, options.output, options.rounds),
            "stdin": lambda: stdin(bulk, options.input, 1, folder),
            "interrupt": lambda: interrupt(programs, options.interrupts),
            "memory": lambda: memory(client, system, options.sessions),
        }
        results: dict[str, Rows] = {}
        for name, measure in measurements.items():
            if options.only in (None, name):
                begin = time.perf_counter()
                results[name] = await measure()
                print_rows(name, results[name], time.perf_counter() - begin)
        return results


def print_rows(title: str, rows: Rows, seconds: float) -> None:
    """Print a table. Beside each value is its ratio to that of the row that the aim names, if there is one."""
    base = rows.get(REFERENCES.get(title, ""), {})
    columns = list(next(iter(rows.values())))
    print(f"\n{title} ({seconds:.0f} s)" + (f"; x: ratio to {REFERENCES[title]}" if base else ""))
    print(f"{'':20}" + "".join(f"{column:>14} {'x' if base else '':>6}" for column in columns))
    for name, row in rows.items():
        cells = (f"{row[column]:14.2f} {_ratio(row[column], base.get(column, 0)):>6}" for column in columns)
        print(f"{name:20}" + "".join(cells))


def _ratio(value: float, base: float) -> str:
    return f"{value / base:.2f}" if base else ""


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("keys", "output", "stdin", "interrupt", "memory"))
    parser.add_argument("--keys", type=int, default=80, help="keys at each terminal, with gaps and in each fast round")
    parser.add_argument("--output", type=int, default=100_000_000, help="bytes through a terminal")
    parser.add_argument("--input", type=int, default=1_000_000_000, help="bytes of standard input")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of output")
    parser.add_argument("--interrupts", type=int, default=5, help="times that Ctrl-C is pressed")
    parser.add_argument("--sessions", type=int, default=200, help="idle sessions")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"), help="folder for the JSON file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = asyncio.run(run(options, Path(folder)))
    machine = {"processors": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "terminals.json"
    path.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")
    print(f"\n{path}")


if __name__ == "__main__":
    main()
