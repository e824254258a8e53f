"""Memory of each process while a command writes very much, without a follower and with one.

Usage: make bench-output [BYTES=10000000000]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import psutil

from tachikoma import Client, ExecRequest
from tachikoma.dev.stack import Stack

#: What the processes may take: beyond what they have when idle, and Redis beyond its log of the output.
AIM_BYTES = 64 * 1024 * 1024
AIM_REDIS_BYTES = 32 * 1024 * 1024
LOG_BYTES = 64 * 1024 * 1024
MIB = 1024 * 1024


class Memory:
    """Resident memory of one process: at the beginning, and at its peak since then."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")
        # Lets the kernel begin the peak anew (proc_pid_clear_refs(5)).
        (self._folder / "clear_refs").write_text("5")
        self.idle = self._read("VmRSS")

    def _read(self, name: str) -> int:
        for line in (self._folder / "status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise LookupError(name)

    @property
    def peak(self) -> int:
        """The most since the beginning."""
        return self._read("VmHWM")


def processes(stack: Stack) -> dict[str, int]:
    """Process ids by what they are."""
    worker = psutil.Process(stack.agents["agent-1"].pid)
    [spawner] = [child for child in worker.children() if "spawner" in child.name()]
    return {
        "worker": worker.pid, "spawner": spawner.pid, "orchestrator": stack.orchestrator.pid, "redis": stack.redis.pid,
    }  # fmt: skip


def run(stack: Stack, size: int, *, follow: bool) -> None:
    """Let a command write, and say what that took."""
    memories = {name: Memory(pid) for name, pid in processes(stack).items()}
    command = ("/bin/sh", "-c", f"yes 'a line of output that is neither long nor short' | head -c {size}")
    request = ExecRequest(agent_id="agent-1", command=command, timeout=3600)
    begin = time.monotonic()
    given = missing = 0
    with Client(stack.profile()) as client:
        if follow:
            for output in client.execute_stream(request):
                given += len(output.data)
                missing += output.missing_bytes
            result = client.execute(request)
        else:
            result = client.execute(request)
    seconds = time.monotonic() - begin
    if result.stdout_summary.total_bytes != size:
        raise SystemExit(f"it wrote {result.stdout_summary.total_bytes} bytes: {result.state}, {result.error}")
    how = (
        f"with a follower, which got {given} bytes and was told of {missing} missing"
        if follow
        else "without a follower"
    )
    print(f"\n{size} bytes in {seconds:.1f} s, {size / seconds / 1e6:.0f} MB/s, {how}")
    print(f"{'':14} {'idle MiB':>9} {'peak MiB':>9} {'more MiB':>9} {'aim MiB':>9}")
    for name, memory in memories.items():
        aim = LOG_BYTES + AIM_REDIS_BYTES if name == "redis" else AIM_BYTES
        more = memory.peak - memory.idle
        print(f"{name:14} {memory.idle / MIB:9.1f} {memory.peak / MIB:9.1f} {more / MIB:9.1f} {aim / MIB:9.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=int, default=10_000_000_000, help="that the command writes")
    size = parser.parse_args().bytes
    for follow in (False, True):
        # A Redis that has held a log once keeps its memory, so each gets one of its own.
        with tempfile.TemporaryDirectory() as folder:
            environment = {"TACHIKOMA_LOG_BYTES": str(LOG_BYTES)}
            with Stack(Path(folder), environment=environment) as stack:
                with Client(stack.profile()) as client:
                    client.execute(ExecRequest(agent_id="agent-1", command=("/bin/true",)))
                run(stack, size, follow=follow)


if __name__ == "__main__":
    main()
