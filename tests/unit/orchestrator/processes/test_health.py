"""The health service follows the connection to Redis."""

from __future__ import annotations

import asyncio

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tachikoma.config.tasks import supervised
from tachikoma_orchestrator.processes import health
from tachikoma_orchestrator.processes.health import SERVICE, Health

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("service", ["", SERVICE])
async def test_health_is_serving_while_redis_is_connected(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LOOK_SECONDS", 0.001)
    connected = asyncio.Event()
    watch = Health(connected)
    server = grpc.aio.server()
    watch.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with (
            supervised(watch.run()),
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            reports = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(service=service), timeout=20
            )

            async def becomes(status: int) -> None:
                while (await reports.read()).status != status:
                    pass

            await becomes(NOT_SERVING)
            connected.set()
            await becomes(SERVING)
            connected.clear()
            await becomes(NOT_SERVING)
            reports.cancel()
    finally:
        await server.stop(None)
