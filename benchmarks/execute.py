"""Latency of one command, beside the floor and plain Celery, all in one run: `make bench`.

Prints p50 and p95 in milliseconds and the ratio to `subprocess.run`; compare ratios, not times. Then the memory of each
process and the Redis commands of one execution. The three kinds are interleaved, so that all meet the same machine.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import redis as redis_py
from celery import Celery

from tachikoma import Client, ExecRequest
from tachikoma.dev.stack import Stack

PLAIN = """
import subprocess, sys
from celery import Celery
app = Celery(broker=sys.argv[1], backend=sys.argv[1])

@app.task(name="plain.run")
def run(command):
    return subprocess.run(command, capture_output=True).returncode

app.worker_main(["worker", "-P", "threads", "-c", "8", "-Q", "plain", "-l", "error", "--without-gossip",
                 "--without-mingle", "--without-heartbeat"])
"""


def timed(action: Callable[[], int]) -> float:
    begin = time.perf_counter()
    if action() != 0:
        raise SystemExit("a command failed")
    return (time.perf_counter() - begin) * 1000


def wait_for(plain: Celery) -> None:
    """Until the plain worker answers."""
    plain.send_task("plain.run", (["/bin/true"],), queue="plain").get(timeout=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500, help="calls of each kind")
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder)) as stack, Client(stack.profile()) as client:
        url = stack.redis_admin_celery_url
        script = Path(folder) / "plain.py"
        script.write_text(PLAIN)
        with subprocess.Popen(
            [sys.executable, str(script), url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as worker:
            plain = Celery(broker=url, backend=url)
            kinds: dict[str, Callable[[], int]] = {
                "subprocess.run": lambda: subprocess.run(["/bin/true"], check=False).returncode,
                "plain Celery .get(), threads": lambda: plain.send_task(
                    "plain.run", (["/bin/true"],), queue="plain"
                ).get(timeout=60),
                "Tachikoma Execute": lambda: (
                    client.execute(ExecRequest(agent_id="agent-1", command=("/bin/true",))).exit_code
                ),
            }
            try:
                wait_for(plain)
                for action in kinds.values():
                    for _ in range(30):
                        action()
                taken: dict[str, list[float]] = {name: [] for name in kinds}
                for _ in range(count):
                    for name, action in kinds.items():
                        taken[name].append(timed(action))
            finally:
                worker.terminate()
        floor = statistics.median(taken["subprocess.run"])
        print(f"{'/bin/true, ' + str(count) + ' calls each':32} {'p50 ms':>8} {'p95 ms':>8} {'x floor':>8}")
        for name, times in taken.items():
            p50, p95 = statistics.median(times), statistics.quantiles(times, n=20)[18]
            print(f"{name:32} {p50:8.2f} {p95:8.2f} {p50 / floor:8.1f}")
        print()
        for part in stack.parts:
            print(f"RSS of {part.name:25} {psutil.Process(part.pid).memory_info().rss / 1e6:8.1f} MB")
        print()
        _count_commands(stack, client)


def _count_commands(stack: Stack, client: Client) -> None:
    with redis_py.Redis(**stack.redis_admin) as redis:

        def calls() -> dict[str, int]:
            return {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in redis.info("commandstats").items()}

        runs = 100
        before = calls()
        for _ in range(runs):
            client.execute(ExecRequest(agent_id="agent-1", command=("/bin/true",)))
        each = {name: (number - before.get(name, 0)) / runs for name, number in calls().items()}
    each = {name: number for name, number in each.items() if number >= 0.05}
    print(f"Redis commands of one execution, those inside Lua included: {sum(each.values()):.0f}")
    print("  " + ", ".join(f"{name} {number:.2g}" for name, number in sorted(each.items())))


if __name__ == "__main__":
    main()
