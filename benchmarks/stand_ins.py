"""Stand-ins of agents in one process, for benchmarks: they speak the real protocol to the real Redis and run nothing.

Each has an identity of its own, renews its lease, takes orders from its queue, verifies and claims them, and delivers a
signed receipt. They share connections of Redis' administrator, so its ACL and its `maxclients` are not tested. They
have no journal, and start no process.

    python benchmarks/stand_ins.py --redis URL --ca FOLDER --agents 1000
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from tachikoma.dev.stack import TRUST_DOMAIN
from tachikoma.identity.authority import CertificateAuthority
from tachikoma.identity.certificates import key_digest
from tachikoma.identity.signed_messages import OutputDigest, Receipt, WorkOrder
from tachikoma.identity.signing import sign, verify
from tachikoma.identity.spiffe import agent_id, service_id
from tachikoma.identity.svid import Svid
from tachikoma.redis import keys
from tachikoma.redis.access import connect
from tachikoma.redis.commands import Redis
from tachikoma.streams.heartbeat import HEARTBEAT_SECONDS, LEASE_SECONDS, REST_SECONDS, Heartbeat, Trust
from tachikoma.vocabulary.clock import now_ms, to_ms
from tachikoma.vocabulary.formats import FORMATS
from tachikoma.vocabulary.states import ExecState
from tachikoma_worker import VERSION

#: Queues that one connection asks: Redis pays for each of them at each order.
QUEUES = 100
#: Agents whose leases are renewed in one round trip.
LEASES = 100
#: Longest wait for an order. A connection that waits longer than its own timeout may lose one.
BLOCK_SECONDS = 1
KEEP_SECONDS = 3600
EMPTY = hashlib.sha256().hexdigest()
NOTHING = OutputDigest(total_bytes=0, sha256=EMPTY, truncated=False, excerpt_sha256=EMPTY)
ORCHESTRATOR = service_id(TRUST_DOMAIN, "orchestrator")


class StandIn:
    """One agent."""

    def __init__(self, name: str, svid: Svid) -> None:
        self.name, self.svid = name, svid
        self.boot = f"journal-of-{name}"
        self.queue = keys.queue(name)

    def heartbeat(self) -> bytes:
        """Return a heartbeat of now."""
        root = self.svid.bundle.roots[0]
        trust = Trust(
            spiffe_id=str(self.svid.spiffe_id), expires_ms=to_ms(self.svid.not_after), root=key_digest(root),
            bundle=(key_digest(root),),
        )  # fmt: skip
        return (
            Heartbeat(
                boot=self.boot, run="stand-in", version=VERSION, hostname=self.name, running=0, slots=64, load=0.0,
                memory_used=0.0, disk_used=0.0, trust=trust, executions=(), formats=dict(FORMATS), sent_ms=now_ms(),
            )
            .model_dump_json()
            .encode()
        )  # fmt: skip

    def receipt(self, order: WorkOrder, token: str) -> str:
        """Return the signed receipt of an order that succeeded."""
        now = now_ms()
        receipt = Receipt(
            iss=str(self.svid.spiffe_id), iat=int(time.time()), jti=order.jti,
            order_sha256=hashlib.sha256(token.encode()).hexdigest(), state=ExecState.SUCCEEDED, exit_code=0, signal=0,
            error="", executable="/usr/bin/true", started_ms=now, ended_ms=now, duration_us=1000, chunks=0,
            stdout=NOTHING, stderr=NOTHING,
        )  # fmt: skip
        return sign(self.svid, receipt)

    async def run(self, redis: Redis, message: bytes) -> None:
        """Do what a worker does with the message of an order, except for running its command."""
        token: str = json.loads(json.loads(message)["body"])[0][0]
        order = verify(token, WorkOrder, self.svid.bundle, ORCHESTRATOR)
        if not await redis.set(keys.claim(self.name, order.jti), self.boot, nx=True, ex=KEEP_SECONDS):
            return
        text = json.dumps(
            {
                "status": "SUCCESS", "traceback": None, "children": [], "date_done": datetime.now(UTC).isoformat(),
                "task_id": keys.task_id(self.name, order.jti),
                "result": {
                    "id": order.jti, "agentId": self.name, "state": "SUCCEEDED", "exitCode": 0, "error": "",
                    "stdout": "", "stderr": "", "receipt": self.receipt(order, token),
                },
            }
        )  # fmt: skip
        key = keys.result(self.name, order.jti)
        async with redis.pipeline(transaction=False) as pipe:
            pipe.set(key, text, ex=KEEP_SECONDS, nx=True)
            if order.reply is not None:
                pipe.publish(keys.report(self.name, order.reply, order.jti), text)
            pipe.publish(key, text)
            await pipe.execute()


async def take_orders(redis: Redis, group: list[StandIn]) -> None:
    """Serve the queues of a group of stand-ins on one connection, for ever."""
    by_queue = {agent.queue: agent for agent in group}
    while True:
        found = await redis.execute_command("BRPOP", *by_queue, BLOCK_SECONDS)
        if found is not None:
            await by_queue[found[0].decode()].run(redis, found[1])


async def renew_leases(redis: Redis, group: list[StandIn], ready: asyncio.Event) -> None:
    """Send the heartbeats of a group as agents at rest do: a whole one at times, and else only a longer lease."""
    sent, number = 0.0, 0
    await asyncio.sleep(random.uniform(0, HEARTBEAT_SECONDS))
    while True:
        whole = number < 2 or time.monotonic() - sent >= REST_SECONDS
        async with redis.pipeline(transaction=False) as pipe:
            for agent in group:
                if whole:
                    beat = agent.heartbeat()
                    pipe.set(keys.info(agent.name), beat, ex=LEASE_SECONDS)
                    pipe.publish(keys.events(agent.name), beat)
                else:
                    pipe.execute_command("GETEX", keys.info(agent.name), "EX", LEASE_SECONDS)
            await pipe.execute()
        if whole:
            sent, number = time.monotonic(), number + 1
        ready.set()
        await asyncio.sleep(HEARTBEAT_SECONDS)


async def serve(url: str, ca: Path, count: int) -> None:
    """Run stand-ins until the process is ended."""
    authority = CertificateAuthority.load(ca)
    redis = connect(url, name="stand-ins", max_connections=500)
    roots = authority.certificate.public_bytes(Encoding.PEM)
    lifetime = timedelta(days=1)
    agents = []
    for number in range(count):
        name = f"web{number}"
        spiffe_id = agent_id(TRUST_DOMAIN, name)
        agents.append(StandIn(name, authority.issue(spiffe_id, bundle_pem=roots, lifetime=lifetime)))
    groups = [agents[at : at + QUEUES] for at in range(0, count, QUEUES)]
    ready = [asyncio.Event() for _ in groups]
    async with asyncio.TaskGroup() as tasks:
        for group, event in zip(groups, ready, strict=True):
            tasks.create_task(take_orders(redis, group))
            tasks.create_task(renew_leases(redis, group, event))
        for event in ready:
            await event.wait()
        print("ready", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redis", required=True)
    parser.add_argument("--ca", type=Path, required=True)
    parser.add_argument("--agents", type=int, default=1000)
    given = parser.parse_args()
    asyncio.run(serve(given.redis, given.ca, given.agents))


if __name__ == "__main__":
    main()
