"""What starting a target of a batch costs beside a single request: `make bench-batch`.

Prints the processor time of this process and of Redis for each target, in ms. The agents only exist in Redis: nothing
takes the orders, so this is decision, signature, message, admission and dispatch, without results. Kinds are
interleaved over the rounds; compare the columns of one run, not of two machines. It also reads all results of a batch
and groups them, with one synthetic answer for each agent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

from tachikoma import BatchRequest, ExecRequest, new_id
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.spiffe import user_id
from tachikoma.policy.decide import SEARCH_PATH
from tachikoma.policy.watch import PolicyWatch
from tachikoma.redis import keys
from tachikoma.redis.access import connect
from tachikoma.targets.answers import grouped
from tachikoma.vocabulary.policies import RateLimitConfig
from tachikoma_orchestrator.admission.admit import Admitter
from tachikoma_orchestrator.agents.registry import Registry
from tachikoma_orchestrator.audit.findings import Findings
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.batches.room import Batches
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.executions.evidence import Evidence
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.store.subscriber import Subscriber

#: Single requests at once, as many as the driver sends in one round trip.
AT_ONCE = 50
BOUNDS = RateLimitConfig(queue_size=100_000)
RETENTION = timedelta(days=30)
POLICY = """\
policies:
  - {name: bench, subjects: ["**"], agents: ["web*"], allowedCommands: [/usr/bin/true]}
"""


async def measure(stack: Stack, agents: int, rounds: int) -> None:
    redis = connect(stack.redis_admin_url, name="bench")
    identity = FileSvidSource(stack.identity("orchestrator"))
    registry = Registry(redis, identity)
    for number in range(agents):
        beat = json.dumps(
            {
                "boot": "b", "run": "r", "version": "0", "hostname": "h", "slots": 1, "running": 0, "load": 0,
                "memory_used": 0, "disk_used": 0,
            }
        ).encode()  # fmt: skip
        await redis.set(keys.info(f"web{number}"), beat)
        await registry.heard(f"web{number}", beat)
    trail = AuditTrail(redis, key=b"k" * 32)
    ledger = Ledger(
        redis, trail, queue_size=BOUNDS.queue_size, approvals_size=1, retention=RETENTION, durable=False
    )  # fmt: skip
    file = stack.data / "bench.yaml"
    file.write_text(POLICY)
    admitter = Admitter(
        ledger, trail, PolicyWatch(file), identity, registry, rate_limit=BOUNDS, search_path=SEARCH_PATH
    )
    evidence = Evidence(redis, Findings(redis, trail), identity, registry.revocations)
    batches = Batches.over(
        redis, ledger, admitter, registry, identity, evidence, Subscriber(redis), retention=RETENTION
    )  # fmt: skip
    peer = Peer(user_id(TRUST_DOMAIN, "alice"), "192.0.2.1")

    async def redis_seconds() -> float:
        found = await redis.info("cpu")
        return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])

    async def singles() -> None:
        limit = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> None:
            async with limit:
                await admitter.admit(ExecRequest(id=new_id(), agent_id=f"web{number}", command=("true",)), peer)

        await asyncio.gather(*(one(number) for number in range(agents)))

    async def batch() -> None:
        request = BatchRequest(targets=(f"web[0-{agents - 1}]",), command=("true",), parallel="1000")
        status = await batches.submission.submit(request, peer)
        for _ in range(agents):
            await batches.driver.drive(status.id)
            progress = await batches.store.progress(status.id)
            if progress is None or not progress.pending:
                break
        found = await batches.store.status(status.id)
        if found is None or found.totals.get("RUNNING") != agents:  # type: ignore[call-overload]
            raise SystemExit(f"not all targets were started: {found}")

    kinds: dict[str, Callable[[], Awaitable[None]]] = {f"singles, {AT_ONCE} at once": singles, "batch": batch}
    print(f"{f'{agents} agents, ms of processor for each':40} {'process':>8} {'Redis':>8} {'wall':>8}")
    for _ in range(rounds):
        for name, action in kinds.items():
            before, server, begin = time.process_time(), await redis_seconds(), time.perf_counter()
            await action()
            own, wall = time.process_time() - before, time.perf_counter() - begin
            taken = (own, await redis_seconds() - server, wall)
            print(f"{name:40} " + " ".join(f"{seconds * 1000 / agents:8.3f}" for seconds in taken))
            for number in range(agents):
                await redis.delete(keys.queue(f"web{number}"))

    ended = keys.batch("synthetic")[3]
    for number in range(agents):
        entry = {"id": f"e{number}", "state": "SUCCEEDED", "exit_code": "0", "stdout_sha256": "ab" * 32}
        await redis.hset(ended, f"web{number}", json.dumps(entry))
    begin = time.process_time()
    groups = grouped((await batches.store.results("synthetic")).values())
    print(f"results of {agents} agents read and grouped into {len(groups)}: {time.process_time() - begin:.3f} s")
    await redis.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=1000, help="at most 1000, which may run at once")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder)) as stack:
        # Only Redis and the identities are used. The orchestrator would drive the batches, too.
        stack.orchestrator.kill()
        asyncio.run(measure(stack, given.agents, given.rounds))


if __name__ == "__main__":
    main()
