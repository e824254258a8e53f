"""Whole programs from their start to their exit, beside a bare Python and a cold ssh: `make bench-startup`.

Every round starts each program once, in a random order, so that all meet the same machine: compare ratios, not times.
Peers that are not installed are left out, by name. `--beside NAME=COMMAND` adds a program, for instance one of another
environment.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from peers import TRUE, ColdSsh
from system import System

from tachikoma.client.profile import PROFILE_VARIABLE, Profile

#: Names of the rows to which others are compared.
PYTHON, SSH = "python -c pass", "ssh host true, cold"
#: Rounds before any is measured, so that all files are in memory.
WARM_UP = 3
#: Prints the number of modules of a command line of this system.
MODULES = """
import os, sys
from tachikoma.cli import main
out = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
try:
    main()
except SystemExit:
    pass
os.write(out, str(len(sys.modules)).encode())
"""
#: Runs a command by asyncssh as a whole program. Arguments: port and key.
ASYNCSSH = """
import asyncio, asyncssh, sys
async def main():
    to = dict(port=int(sys.argv[1]), username="root", client_keys=[sys.argv[2]], known_hosts=None)
    async with asyncssh.connect("127.0.0.1", **to) as connection:
        await connection.run("/bin/true", check=True)
asyncio.run(main())
"""
#: Programs of others that only print their version, if they are installed.
OTHERS = ("docker --version", "kubectl version --client", "gh --version", "tmux -V", "ansible --version",
          "salt --version", "celery --version", "aws --version")  # fmt: skip
#: Command lines of this system.
OWN = ("--version", "--help", f"exec agent-1 {TRUE}", "ps", "agents", "status --help")
#: Further ones, whose modules are counted and whose time is not measured.
COUNTED = (
    f"exec -d agent-1 {TRUE}", f"exec -o json agent-1 {TRUE}", f"run agent-1 -- {TRUE}", "version", "approvals",
    "audit tail", "batches ls", "cancel x", "config show beat", "doctor", "identity show", "logs x", "policy status",
    "recordings ls", "schedule ls", "sessions ls", "status x", "users ls",
)  # fmt: skip


@dataclass
class Program:
    """A program that is started again and again."""

    name: str
    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    #: Modules that it has at its end; None if it is no command line of this system.
    modules: int | None = None
    #: Milliseconds of each run, and of its processor time.
    elapsed: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def run(self) -> tuple[float, float]:
        """Run it once, and return the milliseconds that it took and those of its processor time."""
        begin = time.perf_counter()
        pid = os.posix_spawn(
            self.command[0], self.command, {**os.environ, **self.environment},
            file_actions=[(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)],
        )  # fmt: skip
        _, status, usage = os.wait4(pid, 0)
        taken = time.perf_counter() - begin
        if status != 0:
            raise SystemExit(f"{shlex.join(self.command)} ended with status {os.waitstatus_to_exitcode(status)}")
        return taken * 1000, (usage.ru_utime + usage.ru_stime) * 1000


def own_programs(profile: Path) -> list[Program]:
    """Return the command lines of this system, with the numbers of their modules."""
    environment = {PROFILE_VARIABLE: str(profile)}
    script = str(Path(sys.executable).with_name("tachikoma"))
    return [Program(named(line), [script, *line.split()], environment, modules(line, environment)) for line in OWN]


def named(line: str) -> str:
    """Return how a command line of this system is shown."""
    return f"tachikoma {line}".replace(TRUE, "true")


def modules(line: str, environment: Mapping[str, str]) -> int:
    """Return the number of modules that a command line of this system has imported at its end."""
    counted = subprocess.run(
        [sys.executable, "-c", MODULES, *line.split()], capture_output=True, check=True,
        env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return int(counted.stdout)


def print_counted(counted: Mapping[str, int]) -> None:
    """Print the modules of further command lines, as Markdown."""
    print("\n| program | modules |\n|---|---|")
    for line, number in sorted(counted.items(), key=lambda item: item[1]):
        print(f"| `{named(line)}` | {number} |")


def peers(port: int, key: Path, ssh: list[str], beside: list[str]) -> list[Program]:
    """Return the programs of others that are installed, and print the names of those that are not."""
    found = [Program(PYTHON, [sys.executable, "-c", "pass"]), Program(SSH, [*ssh, TRUE])]
    if find_spec("asyncssh"):
        found.append(Program("asyncssh, cold", [sys.executable, "-c", ASYNCSSH, str(port), str(key)]))
    else:
        print("left out: asyncssh (pip install asyncssh)", file=sys.stderr)
    for line in OTHERS:
        name, *arguments = line.split()
        program = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        if program is None:
            print(f"left out: {name}", file=sys.stderr)
        else:
            found.append(Program(line, [program, *arguments]))
    for text in beside:
        label, _, line = text.partition("=")
        found.append(Program(label, shlex.split(line)))
    return found


def measure(programs: list[Program], rounds: int) -> None:
    """Run all programs in turn."""
    for number in range(WARM_UP + rounds):
        for program in random.sample(programs, len(programs)):
            elapsed, processor = program.run()
            if number >= WARM_UP:
                program.elapsed.append(elapsed)
                program.processor.append(processor)


def print_table(programs: list[Program]) -> None:
    """Print medians, and their ratios to a bare Python and to a cold ssh, as Markdown."""
    named = {program.name: program for program in programs}
    python, ssh = named[PYTHON], named[SSH]
    print("| program | ms | x bare Python | processor time x bare Python | x cold ssh | modules |")
    print("|---|---|---|---|---|---|")
    for program in sorted(programs, key=lambda program: statistics.median(program.elapsed)):
        ratios = (
            _ratio(program.elapsed, python.elapsed),
            _ratio(program.processor, python.processor),
            _ratio(program.elapsed, ssh.elapsed),
        )
        cells = " | ".join(f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}" for ratio in ratios)
        print(f"| `{program.name}` | {statistics.median(program.elapsed):.0f} | {cells} | {program.modules or ''} |")


def _ratio(times: list[float], others: list[float]) -> float:
    return statistics.median(times) / statistics.median(others)


async def main() -> None:
    """Start the servers, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="runs of each program")
    parser.add_argument("--beside", action="append", default=[], metavar="NAME=COMMAND", help="another program")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"), help="folder for a JSON file")
    options = parser.parse_args()
    system, server = System("tachikoma"), ColdSsh()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            await server.start(folder / "ssh")
            await system.start(folder / "stack")
            profile = folder / "profile.json"
            Profile(**system.facts["profile"]).save(profile)
            programs = [
                *peers(server.port, server.key, server.command, options.beside),
                *own_programs(profile),
            ]
            counted = {line: modules(line, {PROFILE_VARIABLE: str(profile)}) for line in COUNTED}
            measure(programs, options.rounds)
        finally:
            await system.stop()
            await server.stop()
    print_table(programs)
    print_counted(counted)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = {item.name: {"elapsed": item.elapsed, "processor": item.processor} for item in programs}
    (options.out / "startup.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
