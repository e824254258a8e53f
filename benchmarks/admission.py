"""What a decision and an admission cost: `make bench-admission`.

Prints p50 and p95 in microseconds and the ratio to a round trip to the same Redis; compare ratios, not times. The kinds
are interleaved, so that all meet the same machine. Then the round trips of one admission, counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from redis.asyncio.connection import AbstractConnection

from tachikoma import ExecRequest, new_id
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.spiffe import user_id
from tachikoma.policy.decide import SEARCH_PATH, PolicySet
from tachikoma.policy.masking.redaction import redact
from tachikoma.policy.watch import PolicyWatch
from tachikoma.redis import keys
from tachikoma.redis.access import connect
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.policies import RateLimitConfig
from tachikoma_orchestrator.admission.admit import Admitter
from tachikoma_orchestrator.agents.registry import Registry
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.executions.ledger import Ledger

#: Nobody takes its orders.
AGENT = "bench"
SUBJECT = str(user_id(TRUST_DOMAIN, "alice"))
COMMAND = ("systemctl", "restart", "app-7.service")
BOUNDS = RateLimitConfig(queue_size=100_000, requests_per_minute=100_000)


def policy(rules: int) -> str:
    """A policy set with so many command patterns, ten a policy; only the last grants the request."""
    policies = []
    for number in range(rules // 10):
        commands = [f"/usr/bin/tool-{number}-{rule} {{start,stop}} app-*.service ..." for rule in range(9)]
        last = "/usr/bin/systemctl {status,restart} app-*.service" if number == rules // 10 - 1 else "/usr/bin/x *"
        policies.append(
            {
                "name": f"policy-{number:04}",
                "subjects": ["spiffe://tachikoma.local/user/*"],
                "agents": ["**"],
                "allowedCommands": [*commands, last],
            }
        )
    return json.dumps({"policies": policies})


async def register(redis: Redis) -> None:
    """Make the agent one that is online."""
    heartbeat = {
        "boot": "b", "run": "r", "version": "0", "hostname": "h", "slots": 1, "running": 0,
        "load": 0, "memory_used": 0, "disk_used": 0,
    }  # fmt: skip
    await redis.set(keys.info(AGENT), json.dumps(heartbeat))
    await redis.hset(keys.AGENTS, AGENT, json.dumps({"seen_ms": 0, "heartbeat": heartbeat}))


async def measure(stack: Stack, folder: Path, count: int) -> None:
    redis = connect(stack.redis_admin_url, name="bench")
    await register(redis)
    trail = AuditTrail(redis, key=b"k" * 32)
    ledger = Ledger(
        redis, trail,
        queue_size=BOUNDS.queue_size, approvals_size=1, retention=timedelta(days=30), durable=False,
    )  # fmt: skip
    identity = FileSvidSource(stack.identity("orchestrator"))
    file = folder / "policy.json.yaml"
    file.write_text(policy(10))
    admitter = Admitter(
        ledger,
        trail,
        PolicyWatch(file),
        identity,
        Registry(redis, identity),
        rate_limit=BOUNDS,
        search_path=SEARCH_PATH,
    )
    peer = Peer(user_id(TRUST_DOMAIN, "alice"), "192.0.2.1")
    sets = {rules: PolicySet.parse(policy(rules), "bench") for rules in (10, 100, 1000)}

    def request() -> ExecRequest:
        return ExecRequest(id=new_id(), agent_id=AGENT, command=COMMAND)

    async def decide(rules: int) -> None:
        if not sets[rules].decide(request(), SUBJECT, SEARCH_PATH).allowed:
            raise SystemExit("the policy does not grant it")

    async def redacted() -> None:
        redact(COMMAND)

    async def admit() -> None:
        if not await admitter.admit(request(), peer):
            raise SystemExit("it was not admitted")

    async def ping() -> None:
        await redis.ping()

    async def made() -> None:
        request()

    kinds: dict[str, Callable[[], Awaitable[None]]] = {
        "round trip to Redis (PING)": ping,
        "making a request, as is in all below": made,
        "redaction": redacted,
        **{f"decision, {rules} rules": lambda rules=rules: decide(rules) for rules in sets},
        "admission in all, 10 rules": admit,
    }
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(count + 30):
        for name, action in kinds.items():
            begin = time.perf_counter()
            await action()
            if turn >= 30:
                taken[name].append((time.perf_counter() - begin) * 1e6)
    floor = statistics.median(taken["round trip to Redis (PING)"])
    print(f"{str(count) + ' times each':40} {'p50 us':>8} {'p95 us':>8} {'x PING':>8}")
    for name, times in taken.items():
        p50, p95 = statistics.median(times), statistics.quantiles(times, n=20)[18]
        print(f"{name:40} {p50:8.0f} {p95:8.0f} {p50 / floor:8.2f}")

    original, trips = AbstractConnection.send_packed_command, 0

    async def counting(self: AbstractConnection, *args: Any, **kwargs: Any) -> None:
        nonlocal trips
        trips += 1
        await original(self, *args, **kwargs)

    with mock.patch.object(AbstractConnection, "send_packed_command", counting):
        await admit()
    print(f"\nround trips of one admission: {trips}")
    await redis.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="of each kind")
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder)) as stack:
        asyncio.run(measure(stack, Path(folder), count))


if __name__ == "__main__":
    main()
