"""The gRPC health service: SERVING while the orchestrator is connected to its Redis."""

from __future__ import annotations

import asyncio

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from tachikoma.exec.v1 import remote_execution_pb2 as pb

__all__ = ["SERVICE", "Health"]

#: Full name of the main service.
SERVICE = pb.DESCRIPTOR.services_by_name["RemoteExecution"].full_name
#: Seconds between two looks at the connection.
LOOK_SECONDS = 0.5


class Health:
    """Reports the state of the connection to Redis as the health of the server and of its main service."""

    def __init__(self, connected: asyncio.Event) -> None:
        """Prepare a health service.

        Args:
            connected: set while the process is connected to Redis.
        """
        self._connected = connected
        self._servicer = health_aio.HealthServicer()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Add the service to a server."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def run(self) -> None:
        """Report changes until cancelled."""
        reported: bool | None = None
        while True:
            connected = self._connected.is_set()
            if reported != connected:
                await self._report(connected)
                reported = connected
            if connected:
                await asyncio.sleep(LOOK_SECONDS)
            else:
                # A new connection counts at once: callers of a server that just started ask its health first.
                await self._connected.wait()

    async def _report(self, connected: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for service in ("", SERVICE):
            await self._servicer.set(service, status.SERVING if connected else status.NOT_SERVING)
