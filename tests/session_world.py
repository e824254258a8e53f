"""An orchestrator's `ExecuteInteractive` over a real ledger and Redis, its callers, and an agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

from admissions import AGENT, DOMAIN, Stand, peer
from patience import PATIENCE_SECONDS
from session_agent import SessionAgent
from tachikoma.client import wire
from tachikoma.config.tasks import cancel_all
from tachikoma.dev.ca import DevelopmentCA
from tachikoma.errors import TachikomaError
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.spiffe import SpiffeId, agent_id, user_id
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.api import guard, observers
from tachikoma_orchestrator.api.remote_execution import RemoteExecution
from tachikoma_orchestrator.api.service import ServiceParts
from tachikoma_orchestrator.audit.findings import Findings
from tachikoma_orchestrator.executions.collector import Collector
from tachikoma_orchestrator.executions.evidence import Evidence
from tachikoma_orchestrator.executions.waiters import Completions
from tachikoma_orchestrator.recordings.folder import RecordingFolder
from tachikoma_orchestrator.recordings.room import Recordings
from tachikoma_orchestrator.store.subscriber import Subscriber

__all__ = ["Caller", "World", "open_world"]


class Context:
    """The context of a call."""

    def add_done_callback(self, callback: Callable[[object], None]) -> None:
        self.done = callback


class Caller:
    """One call of the RPC: messages there, and what came back."""

    def __init__(self, service: RemoteExecution, *, by: SpiffeId) -> None:
        self.requests: asyncio.Queue[pb.ExecInput | None] = asyncio.Queue()
        self.context = Context()
        self.seen: list[pb.ExecOutput] = []
        self.error: TachikomaError | None = None
        guard._peer.set(peer(by))
        self.task = asyncio.create_task(self._run(service))

    async def _messages(self) -> AsyncIterator[pb.ExecInput]:
        while (message := await self.requests.get()) is not None:
            yield message

    async def _run(self, service: RemoteExecution) -> None:
        try:
            async for message in service.ExecuteInteractive(self._messages(), cast(Any, self.context)):
                self.seen.append(message)
        except TachikomaError as error:
            self.error = error

    def send(self, **event: Any) -> None:
        self.requests.put_nowait(pb.ExecInput(**event))

    async def end(self) -> TachikomaError | None:
        await asyncio.wait_for(self.task, PATIENCE_SECONDS)
        return self.error

    def of(self, kind: str) -> list[Any]:
        return [getattr(message, kind) for message in self.seen if message.WhichOneof("event") == kind]


class World:
    """An orchestrator's service with one agent."""

    def __init__(self, stand: Stand, subscriptions: Redis, folder: Path, *, recorded: bool) -> None:
        self.stand, self.redis = stand, stand.redis
        self.subscriber = Subscriber(subscriptions)
        completions = Completions()
        findings = Findings(self.redis, stand.trail)
        evidence = Evidence(self.redis, findings, stand.identity, stand.registry.revocations)
        Collector(
            self.redis, stand.ledger, completions, stand.registry, stand.identity, evidence, findings
        ).attach(self.subscriber, 0)  # fmt: skip
        self.store = RecordingFolder(folder / "recordings") if recorded else None
        if recorded:
            (folder / "recordings").mkdir()
        self.recordings = Recordings.over(
            self.store, redis=self.redis, subscriber=self.subscriber, identity=stand.identity, trail=stand.trail,
            ledger=stand.ledger, evidence=evidence, completions=completions, max_bytes=10**9,
            retention=timedelta(days=1),
        )  # fmt: skip
        stand.admitter.record_with(self.recordings.obstacle)
        self.service = RemoteExecution(
            ServiceParts(
                redis=self.redis, identity=stand.identity, policies=stand.policies, trail=stand.trail,
                ledger=stand.ledger, evidence=evidence, admitter=stand.admitter, approvals=stand.approvals,
                completions=completions, output_subscriber=self.subscriber, registry=stand.registry,
                membership=cast(Any, None), schedule_runner=None, batches=cast(Any, None),
                recordings=self.recordings,
            )
        )  # fmt: skip
        DevelopmentCA(folder / "ca", DOMAIN).issue(agent_id(DOMAIN, AGENT), folder / "agent")
        self.svid = FileSvidSource(folder / "agent").current()
        self.tasks: list[asyncio.Task[Any]] = []

    def call(self, *, by: SpiffeId | None = None) -> Caller:
        caller = Caller(self.service, by=by or user_id(DOMAIN, "alice"))
        self.tasks.append(caller.task)
        return caller

    def open(self) -> tuple[Caller, str]:
        """Call with a new request."""
        request = ExecRequest(agent_id=AGENT, command=("true",), interactive=True, tty=True)
        caller = self.call()
        caller.send(request=wire.request_to_pb(request))
        return caller, request.id

    async def start(self, exec_id: str) -> SessionAgent:
        """Let the agent start the command, once its order is on the queue."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await self.redis.hget(keys.execution(exec_id), "epoch") is None:  # noqa: ASYNC110 (nothing announces it)
                await asyncio.sleep(0.005)
        agent = SessionAgent(self.redis, self.svid, exec_id)
        self.tasks.append(asyncio.create_task(agent.run()))
        assert await self.stand.ledger.started(AGENT, exec_id, 1)
        await agent.restart()
        return agent

    async def finish(self, exec_id: str) -> None:
        done = await self.stand.ledger.settle(
            AGENT, exec_id, [ExecState.STARTED], ExecState.LOST, reason="the test ends it", fence=False
        )
        assert done == "DONE"


@asynccontextmanager
async def open_world(
    redis: Redis, subscriptions: Redis, folder: Path, *, recorded: bool = False
) -> AsyncIterator[World]:
    world = World(await Stand.make(redis, folder), subscriptions, folder, recorded=recorded)
    world.tasks.append(asyncio.create_task(world.subscriber.run()))
    world.tasks.append(asyncio.create_task(world.recordings.run()))
    try:
        # A slow machine must not leave out what is recorded when an observer leaves.
        with patch.object(observers, "LEAVE_SECONDS", PATIENCE_SECONDS):
            await asyncio.wait_for(world.subscriber.connected.wait(), PATIENCE_SECONDS)
            yield world
    finally:
        await cancel_all(world.tasks[::-1])
