"""An agent in the test's own process: real Redis, real spawner, real certificates, and no Celery."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from authority import Authority
from patience import PATIENCE_SECONDS
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.signed_messages import CancelOrder, LifeRecord, Receipt, WorkOrder
from tachikoma.identity.signing import sign, verify
from tachikoma.identity.spiffe import agent_id, service_id, user_id
from tachikoma.identity.svid import Svid
from tachikoma.redis import keys
from tachikoma.redis.access import connect
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.grants import Grant, GrantedExecutable
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_worker.cgroups.hierarchy import NoHierarchy
from tachikoma_worker.confinement.isolation.enclosures import Enclosures
from tachikoma_worker.confinement.spawner import Spawner
from tachikoma_worker.engine.tasks import TrackedTasks
from tachikoma_worker.execution.context import Context, sent_output
from tachikoma_worker.execution.execution import Execution
from tachikoma_worker.execution.journal import Journal
from tachikoma_worker.execution.lives import Lives
from tachikoma_worker.execution.reserve import DiskReserve
from tachikoma_worker.output.spool import host_boot
from tachikoma_worker.settings import WorkerSettings

__all__ = ["AGENT", "DOMAIN", "REQUESTER", "LocalAgent", "local_agent"]

DOMAIN = "tachikoma.local"
AGENT = "web-1"
REQUESTER = str(user_id(DOMAIN, "someone"))


@dataclass(frozen=True)
class LocalAgent:
    """The context of an agent, and the orchestrator that signs its orders."""

    context: Context
    orchestrator: Svid
    background: TrackedTasks
    redis: Redis

    def order(
        self, *command: str, executables: list[str] | None = None, order: dict[str, Any] | None = None,
        grant: dict[str, Any] | None = None, **request: Any,
    ) -> WorkOrder:  # fmt: skip
        """An order for this agent.

        Args:
            command: the argv.
            executables: paths that policy grants; the first word of the command by default.
            order, grant, request: fields that differ from an ordinary one.
        """
        asked = ExecRequest(agent_id=AGENT, command=command, **{"timeout": 30, **request})
        granted = [GrantedExecutable(path=path) for path in executables or [command[0]]]
        now = int(time.time())
        fields: dict[str, Any] = {
            "iss": str(self.orchestrator.spiffe_id), "iat": now, "aud": str(agent_id(DOMAIN, AGENT)), "sub": REQUESTER,
            "exp": now + 600, "jti": asked.id, "policy": "p@0", "host_access": True,
            "journal": self.context.journal.boot,
            "grant": Grant(
                executables=granted, **{"interpreters": True, "work_dir_root": asked.work_dir, **(grant or {})}
            ),
            "request": asked,
        }  # fmt: skip
        return WorkOrder(**{**fields, **(order or {})})

    def execution(self, order: WorkOrder) -> Execution:
        """The execution of an order, as the pool hands it over."""
        return Execution.of_order(self.context, order.jti, sign(self.orchestrator, order))

    def cancel(self, order: WorkOrder, **fields: Any) -> str:
        """A signed cancel of an execution."""
        values = {"iss": str(self.orchestrator.spiffe_id), "iat": int(time.time()), "aud": order.aud, "sub": REQUESTER}
        return sign(self.orchestrator, CancelOrder(**{**values, "jti": order.jti, **fields}))

    def life(self, number: int, valid_from: int, replid: str) -> str:
        """A signed record of a life of Redis."""
        issuer, now = str(self.orchestrator.spiffe_id), int(time.time())
        record = LifeRecord(iss=issuer, iat=now, number=number, valid_from=valid_from, replid=replid)
        return sign(self.orchestrator, record)

    async def replid(self) -> str:
        """The replication id of the server."""
        return str((await self.redis.info("replication"))["master_replid"])

    async def record_life(self, number: int, valid_from: int = 0) -> str:
        """Record a life of the server, as an orchestrator does, and return the record."""
        token = self.life(number, valid_from, await self.replid())
        await self.redis.set(keys.LIFE, token)
        return token

    async def receipt(self, exec_id: str) -> Receipt | None:
        """The verified receipt in the Celery result of an execution, if there is one."""
        raw = await self.redis.get(keys.result(AGENT, exec_id))
        if raw is None:
            return None
        svid = self.context.identity.current()
        return verify(json.loads(raw)["result"]["receipt"], Receipt, svid.bundle, agent_id(DOMAIN, AGENT))


@asynccontextmanager
async def local_agent(redis: Redis, redis_url: str, authority: Authority, **settings: Any) -> AsyncIterator[LocalAgent]:
    """An agent whose spawner, journal and files end with the test, and that leaves no command."""
    # Not under tmp_path: the path of a unix socket has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="tk-"))
    authority.write(folder / "identity", str(agent_id(DOMAIN, AGENT)))
    values = {"agent_id": AGENT, "redis_url": redis_url, "identity": folder / "identity", "data": folder, **settings}
    background = TrackedTasks("cleaning.failed")
    spawner = Spawner.connect(folder / "spawner.sock")
    abilities = spawner.abilities()
    spawner.attach()
    journal, identity = Journal(folder), FileSvidSource(folder / "identity")
    lives = Lives(journal, identity, "orchestrator")
    context = Context(
        settings=WorkerSettings(**values),
        waiting_redis=connect(redis_url, name="agent-sessions"),
        reserve=DiskReserve(folder),
        redis=connect(redis_url, name="agent", gate=lives),
        journal=journal,
        lives=lives,
        sent=sent_output(WorkerSettings(**values)),
        spawner=spawner,
        cgroups=NoHierarchy("a test"),
        enclosures=Enclosures(WorkerSettings(**values), abilities),
        local_policy=None,
        identity=identity,
        host=host_boot(),
        background=background.start,
    )
    context.spools.mkdir()
    context.sessions.mkdir()
    orchestrator = authority.svid(str(service_id(DOMAIN, "orchestrator")))
    try:
        yield LocalAgent(context, orchestrator, background, redis)
    finally:
        await background.wait(PATIENCE_SECONDS)
        await background.cancel()
        for held in await spawner.held():
            process = await spawner.take(held)
            await process.kill_all()
            await process.exited
            await process.close()
        await context.journal.flush()
        context.reserve.close()
        await context.waiting_redis.aclose()
        await context.redis.aclose()
        program = spawner._started
        await spawner.stop()
        if program is not None:
            try:
                program.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                program.kill()
                raise
        context.journal.close()
        shutil.rmtree(folder)
