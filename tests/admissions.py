"""Admission on a real Redis, without a server around it: what the tests of `admission/` share."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

from tachikoma.dev.ca import DevelopmentCA
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.signed_messages import WorkOrder
from tachikoma.identity.signing import verify
from tachikoma.identity.spiffe import SpiffeId, service_id, user_id
from tachikoma.policy.watch import PolicyWatch
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import ExecAuditLog
from tachikoma.vocabulary.policies import RateLimitConfig
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_orchestrator.admission.admit import Admitter
from tachikoma_orchestrator.admission.approvals import Approvals
from tachikoma_orchestrator.agents.registry import Registry
from tachikoma_orchestrator.audit.findings import Findings
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.executions.ledger import Ledger

DOMAIN, AGENT = "tachikoma.local", "web-1"
ORCHESTRATOR = service_id(DOMAIN, "orchestrator")
ALICE, BOSS, OTHER = (user_id(DOMAIN, name) for name in ("alice", "boss", "other"))
POLICY = """\
operators: []
policies:
  - name: free
    subjects: ["spiffe://tachikoma.local/user/*"]
    agents: ["web-*"]
    allowedCommands: ["/usr/bin/true ..."]
    allowInteractive: true
    allowTty: true
    maxTimeout: 5m
  - name: careful
    subjects: ["spiffe://tachikoma.local/user/*"]
    agents: ["web-*"]
    allowedCommands: ["/usr/bin/printf ..."]
    limits: {pids: 50}
    isolation: private
    requireApproval: true
    approvers: ["spiffe://tachikoma.local/user/boss", "spiffe://tachikoma.local/user/alice"]
"""


class Stand:
    """An orchestrator's admission, with one agent that is online."""

    def __init__(self, redis: Redis, folder: Path, *, rate_limit: RateLimitConfig, queue_size: int) -> None:
        self.redis = redis
        DevelopmentCA(folder / "ca", DOMAIN).issue(ORCHESTRATOR, folder / "orchestrator")
        self.identity = FileSvidSource(folder / "orchestrator")
        self.file = folder / "policy.yaml"
        self.file.write_text(POLICY)
        self.policies = PolicyWatch(self.file)
        self.trail = AuditTrail(redis, key=b"k" * 32)
        self.ledger = Ledger(
            redis, self.trail, queue_size=queue_size, approvals_size=2, retention=timedelta(hours=1), durable=False
        )
        self.registry = Registry(redis, self.identity)
        self.admitter = Admitter(
            self.ledger, self.trail, self.policies, self.identity, self.registry,
            rate_limit=rate_limit, search_path=("/usr/bin",),
        )  # fmt: skip
        self.approvals = Approvals(
            self.ledger, self.trail, self.admitter, self.identity, Findings(redis, self.trail)
        )  # fmt: skip

    @classmethod
    async def make(
        cls, redis: Redis, folder: Path, *, rate_limit: RateLimitConfig | None = None, queue_size: int = 100
    ) -> Stand:
        """Make one whose agent has been heard of."""
        stand = cls(redis, folder, rate_limit=rate_limit or RateLimitConfig(), queue_size=queue_size)
        await stand.heard()
        return stand

    async def heard(self, agent: str = AGENT, **values: Any) -> None:
        """Let an agent send a heartbeat."""
        beat = json.dumps(
            {
                "type": "heartbeat", "boot": f"journal of {agent}", "run": "r", "version": "1", "hostname": "h",
                "labels": {"rack": "r1"}, "running": 0, "slots": 1, "load": 0, "memory_used": 0, "disk_used": 0,
                **values,
            }
        ).encode()  # fmt: skip
        await self.redis.set(keys.info(agent), beat)
        await self.registry.heard(agent, beat)

    def change_policy(self, old: str, new: str) -> None:
        """Replace a part of the policy file, at once."""
        text = self.file.read_text()
        assert old in text
        # Another file, so that the change is seen however quickly it follows.
        other = self.file.with_suffix(".new")
        other.write_text(text.replace(old, new))
        other.rename(self.file)
        assert self.policies.reload()
        assert not self.policies.error

    async def admit(self, *command: str, by: SpiffeId = ALICE, **values: Any) -> str:
        """Admit a new request and return its id."""
        request = ExecRequest(**{"agent_id": AGENT, "command": command or ("true",), **values})
        assert await self.admitter.admit(request, peer(by))
        return request.id

    async def order(self, agent: str = AGENT) -> WorkOrder:
        """Take the oldest order from an agent's queue, and verify it."""
        return verify(await self.token(agent), WorkOrder, self.identity.current().bundle, ORCHESTRATOR)

    async def token(self, agent: str = AGENT) -> str:
        """Take the oldest order from an agent's queue, as it was signed."""
        message: bytes | None = await self.redis.execute_command("RPOP", keys.queue(agent))
        assert message is not None
        return str(json.loads(json.loads(message)["body"])[0][0])

    async def queued(self, agent: str = AGENT) -> int:
        """The length of an agent's queue."""
        return int(await self.redis.execute_command("LLEN", keys.queue(agent)))

    async def events(self, exec_id: str) -> list[ExecAuditLog]:
        """The audit events of an execution."""
        return (await self.trail.read(after="", limit=100, exec_id=exec_id)).events

    async def codes(self, exec_id: str) -> list[str]:
        """The codes of the audit events of an execution."""
        return [event.event for event in await self.events(exec_id)]


def peer(spiffe_id: SpiffeId = ALICE) -> Peer:
    """A caller from a known address."""
    return Peer(spiffe_id, "192.0.2.7")
