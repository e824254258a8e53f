"""The server as a whole, in the test's own loop: start, health, failure of a part, stop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from authority import Authority
from patience import PATIENCE_SECONDS
from tachikoma.config.tasks import cancel_all
from tachikoma.errors import ConfigurationError
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.exec.v1.remote_execution_pb2_grpc import RemoteExecutionStub
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma_orchestrator.executions.reaper import Reaper
from tachikoma_orchestrator.processes import health
from tachikoma_orchestrator.processes.server import Server
from tachikoma_orchestrator.processes.settings import OrchestratorSettings

#: DNS name in the certificate of the server, see conftest.py.
NAME = "orchestrator.test"
OPERATOR = "spiffe://tachikoma.local/user/alice"


class Running:
    """A server that runs, and a channel to it."""

    def __init__(self, server: Server, authority: Authority) -> None:
        self.server, self.stop = server, asyncio.Event()
        self.address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(server.run(self.stop, self.address.set_result))
        self._authority = authority

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        svid = self._authority.svid(OPERATOR)
        credentials = grpc.ssl_channel_credentials(self._authority.pem, svid.key_pem, svid.certificate_pem)
        options = [("grpc.ssl_target_name_override", NAME)]
        async with grpc.aio.secure_channel(await self.address, credentials, options) as channel:
            yield channel


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LOOK_SECONDS", 0.01)


@asynccontextmanager
async def running(given: dict[str, Any], authority: Authority, **changes: Any) -> AsyncIterator[Running]:
    before = asyncio.all_tasks()
    found = Running(Server(OrchestratorSettings(**{**given, **changes})), authority)
    try:
        yield found
    finally:
        found.stop.set()
        await asyncio.gather(found.task, return_exceptions=True)
        # gRPC ends the tasks of its handlers by itself; of ours none is left.
        left = [task for task in asyncio.all_tasks() - before if "tachikoma" in str(task.get_coro())]
        await cancel_all(left)
        assert left == []


async def test_a_server_serves_until_it_is_asked_to_stop(given: dict[str, Any], authority: Authority) -> None:
    async with running(given, authority) as found:
        async with found.channel() as channel:
            reports = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(), timeout=PATIENCE_SECONDS
            )
            while (await reports.read()).status != health_pb2.HealthCheckResponse.SERVING:
                pass
            reports.cancel()
            answer = await RemoteExecutionStub(channel).List(pb.ListRequest(), timeout=PATIENCE_SECONDS)  # type: ignore[misc]
            assert list(answer.executions) == []
            assert await found.address == str(found.server.address)
        found.stop.set()
        await found.task
        async with found.channel() as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await RemoteExecutionStub(channel).List(pb.ListRequest(), timeout=PATIENCE_SECONDS)  # type: ignore[misc]
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_part_that_fails_ends_the_server_with_its_reason(
    given: dict[str, Any], authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail = asyncio.Event()

    async def failing(self: Reaper) -> None:
        await fail.wait()
        raise ZeroDivisionError("the reaper failed")

    monkeypatch.setattr(Reaper, "run", failing)
    async with running(given, authority) as found:
        await found.address
        fail.set()
        with pytest.raises(ZeroDivisionError, match="the reaper failed"):
            await found.task


async def test_a_server_ships_its_audit_trail_and_records_its_policy(
    given: dict[str, Any], authority: Authority, redis: Redis, tmp_path: Path, until: Any
) -> None:
    log = tmp_path / "audit.jsonl"
    async with running(given, authority, audit_log=log):
        await until(
            lambda: log.exists() and "is active in orchestrator on" in log.read_text(), "the policy is recorded"
        )
    # At its end the log is signed for.
    assert "checkpoint" in log.read_text()
    events = [fields[b"event"] for _, fields in await redis.xrange(keys.AUDIT)]
    assert events == [b"policy_changed"]
    assert all(json.loads(line) for line in log.read_text().splitlines())


async def test_a_server_starts_without_redis_and_says_that_it_does_not_serve(
    given: dict[str, Any], authority: Authority, tmp_path: Path
) -> None:
    async with (
        running(given, authority, redis_url=f"unix://{tmp_path}/nowhere") as found,
        found.channel() as channel,
    ):
        reports = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_SECONDS)
        while (await reports.read()).status != health_pb2.HealthCheckResponse.NOT_SERVING:
            pass
        reports.cancel()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await RemoteExecutionStub(channel).List(pb.ListRequest(), timeout=PATIENCE_SECONDS)  # type: ignore[misc]
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "nothing was lost" in str(caught.value.details())


async def test_a_server_that_cannot_be_put_together_is_a_configuration_error(
    given: dict[str, Any], tmp_path: Path
) -> None:
    for wrong in ({"policy": tmp_path / "none.yaml"}, {"identity": str(tmp_path / "none")}, {"audit_key": tmp_path}):
        with pytest.raises(ConfigurationError):
            Server(OrchestratorSettings(**{**given, **wrong}))
