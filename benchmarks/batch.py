"""What a batch costs beside single requests, and how 10,000 targets behave: `make bench-batch`.

A development stack with its real orchestrator and Redis, and stand-ins (`stand_ins.py`) that speak the agents' protocol
and run nothing. Three parts, each in a stack of its own:

1. `true` on each of 1,000 stand-ins: single requests, 50 at once, beside one batch, in turn over the rounds. Processor
   time of the orchestrator, of Redis, and of this client for each target, in ms. Compare the rows of one run.
2. 10,000 stand-ins at rest: commands of Redis and processor time a second; then a batch on all of them: first answer,
   last answer, grouping after the last; small calls beside it and before it; memory of client and orchestrator.
3. Only with `--part real`: 100 real agents of the stack beside `clush` over ssh, if `clush` is installed and an ssh
   server of this host lets this user in.

Other load on the machine changes every number.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from tachikoma import AsyncClient, BatchRequest, ExecRequest
from tachikoma.dev.stack import Stack
from tachikoma.redis.access import connect
from tachikoma.redis.commands import Redis
from tachikoma.targets.answers import grouped
from tachikoma.vocabulary.batches import BatchResult

#: Single requests at once.
AT_ONCE = 50
#: Longest time until the orchestrator knows all stand-ins, in seconds.
JOIN_SECONDS = 120
#: Length of the measurement at rest, in seconds.
REST_SECONDS = 15
#: Longest time of a batch, in seconds. One that takes longer is cancelled, and its row says how far it came.
BATCH_SECONDS = 240
#: Delay between two small calls, in seconds.
SMALL_CALL_SECONDS = 0.02


class World:
    """A stack with stand-ins and a client."""

    def __init__(self, stack: Stack, stand_ins: subprocess.Popen[str], client: AsyncClient, redis: Redis) -> None:
        self.stack, self.client, self.redis = stack, client, redis
        self.parts = {
            "orchestrator": psutil.Process(stack.orchestrator.pid), "Redis": psutil.Process(stack.redis.pid),
            "stand-ins": psutil.Process(stand_ins.pid), "client": psutil.Process(os.getpid()),
        }  # fmt: skip

    def cpu(self) -> dict[str, float]:
        """The processor time of each process, in seconds."""
        return {name: sum(process.cpu_times()[:2]) for name, process in self.parts.items()}

    def megabytes(self, part: str) -> float:
        """The resident memory of a process."""
        return float(self.parts[part].memory_info().rss) / 1e6

    async def commands(self) -> int:
        """The number of commands that Redis has processed."""
        return int((await self.redis.info("stats"))["total_commands_processed"])


@asynccontextmanager
async def world(agents: int) -> AsyncIterator[World]:
    """Run a stack with stand-ins that are online."""
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder), agents=0) as stack:
        program = [sys.executable, str(Path(__file__).parent / "stand_ins.py"), "--agents", str(agents)]
        program += ["--redis", stack.redis_admin_url, "--ca", str(stack.data / "ca")]
        stand_ins = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220 (nothing else waits)
        redis = connect(stack.redis_admin_url, name="bench")
        try:
            assert stand_ins.stdout is not None
            if not await asyncio.to_thread(stand_ins.stdout.readline):
                raise SystemExit("the stand-ins did not start")
            async with AsyncClient(stack.profile()) as client:
                await _all_online(client, agents)
                yield World(stack, stand_ins, client, redis)
        finally:
            stand_ins.kill()
            stand_ins.wait()
            await redis.aclose()


async def _all_online(client: AsyncClient, agents: int) -> None:
    async with asyncio.timeout(JOIN_SECONDS):
        while sum(agent.online for agent in await client.agents()) < agents:  # noqa: ASYNC110 (another process)
            await asyncio.sleep(1)


# --- 1,000 targets beside 1,000 singles -------------------------------------------------------------------------------


async def run_batch(client: AsyncClient, parallel: int) -> list[tuple[float, BatchResult]]:
    """Run `true` everywhere; return each end with its time since the request, in seconds."""
    begin = time.perf_counter()
    ends: list[tuple[float, BatchResult]] = []
    request = BatchRequest(targets=("web*",), command=("true",), parallel=str(parallel))
    try:
        async with asyncio.timeout(BATCH_SECONDS):
            async for update in client.run(request):
                if update.result is not None:
                    ends.append((time.perf_counter() - begin, update.result))
    except TimeoutError:
        print(f"the batch was cancelled after {BATCH_SECONDS} s; {len(ends)} targets had ended")
    return ends


async def beside_singles(agents: int, rounds: int) -> None:
    """Print what a target costs, in a batch and as a single request."""
    async with world(agents) as at:

        async def singles() -> None:
            limit = asyncio.Semaphore(AT_ONCE)

            async def one(number: int) -> None:
                async with limit:
                    response = await at.client.execute(ExecRequest(agent_id=f"web{number}", command=("true",)))
                    response.check()

            await asyncio.gather(*(one(number) for number in range(agents)))

        async def batch() -> None:
            ends = await run_batch(at.client, AT_ONCE)
            assert [result.state for _, result in ends] == ["SUCCEEDED"] * agents

        kinds: dict[str, Callable[[], Awaitable[None]]] = {f"singles, {AT_ONCE} at once": singles, "batch": batch}
        print(f"{f'{agents} targets, ms of processor for each':44}" + "".join(f"{part:>14}" for part in at.parts))
        for _ in range(rounds):
            for name, action in kinds.items():
                before, begin = at.cpu(), time.perf_counter()
                await action()
                wall = time.perf_counter() - begin
                spent = {part: seconds - before[part] for part, seconds in at.cpu().items()}
                row = "".join(f"{seconds * 1000 / agents:14.3f}" for seconds in spent.values())
                print(f"{name:30}{wall:9.2f} s   {row}")


# --- 10,000 targets ---------------------------------------------------------------------------------------------------


async def small_calls(client: AsyncClient, agent: str, delays: list[float]) -> None:
    """Run `true` on one agent again and again until cancelled; collect the delays in seconds."""
    while True:
        begin = time.perf_counter()
        (await client.execute(ExecRequest(agent_id=agent, command=("true",)))).check()
        delays.append(time.perf_counter() - begin)
        await asyncio.sleep(SMALL_CALL_SECONDS)


def quantiles(delays: list[float]) -> str:
    """Return p50, p99 and the number of delays, in words."""
    cuts = statistics.quantiles(delays, n=100)
    return f"p50 {cuts[49] * 1000:.1f} ms, p99 {cuts[98] * 1000:.1f} ms of {len(delays)}"


async def many(agents: int, parallel: int) -> None:
    """Print how a stack with many agents behaves, at rest and under one batch on all of them."""
    async with world(agents) as at:
        # After their first heartbeats, agents at rest only renew their leases.
        await asyncio.sleep(REST_SECONDS)
        before, commands, begin = at.cpu(), await at.commands(), time.perf_counter()
        await asyncio.sleep(REST_SECONDS)
        wall = time.perf_counter() - begin
        print(f"{agents} agents at rest: {(await at.commands() - commands) / wall:.0f} commands of Redis a second")
        for part, seconds in at.cpu().items():
            print(f"  {part}: {(seconds - before[part]) / wall * 100:.1f} % of a processor")
        for name, work in {"undisturbed": asyncio.sleep(REST_SECONDS), "batch": run_batch(at.client, parallel)}.items():
            delays: list[float] = []
            async with AsyncClient(at.stack.profile()) as other:
                beside = asyncio.create_task(small_calls(other, "web0", delays))
                before = at.cpu()
                ends = await work
                beside.cancel()
            print(f"small calls, {name}: {quantiles(delays)}")
        if not ends:
            raise SystemExit("no target has ended")
        spent = at.cpu()["orchestrator"] - before["orchestrator"]
        print(f"batch: first answer {ends[0][0] * 1000:.0f} ms, last {ends[-1][0]:.1f} s, of {len(ends)}")
        print(f"  {spent * 1000 / agents:.3f} ms of the orchestrator's processor for each")
        begin = time.perf_counter()
        groups = grouped(result for _, result in ends)
        print(f"  grouped into {len(groups)} after the last: {(time.perf_counter() - begin) * 1000:.0f} ms")
        print(f"memory: orchestrator {at.megabytes('orchestrator'):.0f} MB, client {at.megabytes('client'):.0f} MB")


# --- 100 real ones beside ssh -----------------------------------------------------------------------------------------


async def real_agents(agents: int, rounds: int) -> None:
    """Print how long `true` takes on real agents of one host."""
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder), agents=agents) as stack:
        async with AsyncClient(stack.profile()) as client:
            for _ in range(rounds):
                begin = time.perf_counter()
                async for update in client.run(BatchRequest(targets=("agent-*",), command=("true",), parallel="64")):
                    status = update.status
                assert status is not None
                print(f"batch on {agents} real agents: {time.perf_counter() - begin:.2f} s, {dict(status.totals)}")


def over_ssh(hosts: int, rounds: int) -> None:
    """Print how long `clush` takes to run `true` on as many names of this host."""
    if (clush := shutil.which("clush")) is None:
        print("clush is not installed")
        return
    # Each address of 127.0.0.0/8 is this host.
    names = f"127.0.0.[1-{hosts}]"
    options = "-oBatchMode=yes -oStrictHostKeyChecking=no -oUserKnownHostsFile=/dev/null -oLogLevel=ERROR"
    for _ in range(rounds):
        begin = time.perf_counter()
        done = subprocess.run([clush, "-q", "-f", "64", "-o", options, "-w", names, "true"], check=False)
        print(f"clush -f 64: {time.perf_counter() - begin:.2f} s, exit code {done.returncode}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("singles", "many", "real"), help="one part only; by default the first two")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--agents", type=int, default=1000, help="stand-ins of the first part")
    parser.add_argument("--many", type=int, default=10_000, help="stand-ins of the second part")
    parser.add_argument("--parallel", type=int, default=500, help="executions at once in the second part")
    parser.add_argument("--real", type=int, default=100, help="real agents of the third part; 100 need about 8 GB")
    given = parser.parse_args()
    if given.part in (None, "singles"):
        asyncio.run(beside_singles(given.agents, given.rounds))
    if given.part in (None, "many"):
        asyncio.run(many(given.many, given.parallel))
    if given.part == "real":
        asyncio.run(real_agents(given.real, given.rounds))
        over_ssh(given.real, given.rounds)


if __name__ == "__main__":
    main()
