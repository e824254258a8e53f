"""The orchestrator as a process: wiring, start and stop.

Everything it does in the background runs under one task group: when one part fails, all end, and the process says why.
It starts without Redis too: calls are then answered UNAVAILABLE, and the health service says NOT_SERVING.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from tachikoma.config.tasks import cancel_all
from tachikoma.errors import ConfigurationError
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.exec.v1.remote_execution_pb2_grpc import (
    add_JoiningServicer_to_server,
    add_RemoteExecutionServicer_to_server,
)
from tachikoma.identity.authority import CertificateAuthority
from tachikoma.identity.certificates import dns_names
from tachikoma.identity.svid import Svid, SvidSource
from tachikoma.redis.access import connect
from tachikoma.vocabulary.addresses import HostPort
from tachikoma.vocabulary.requests import MAX_MESSAGE_BYTES
from tachikoma_orchestrator.admission.approvals import Approvals
from tachikoma_orchestrator.agents.authority import Authority
from tachikoma_orchestrator.agents.membership import Membership
from tachikoma_orchestrator.agents.redis_accounts import Accounts
from tachikoma_orchestrator.api.executions import RemoteExecution
from tachikoma_orchestrator.api.guard import Guard
from tachikoma_orchestrator.api.join_service import Joining, joining_server
from tachikoma_orchestrator.audit.shipper import Shipper
from tachikoma_orchestrator.audit.sinks.file import FileSink
from tachikoma_orchestrator.audit.sinks.sink import Sink
from tachikoma_orchestrator.audit.sinks.stdout import StandardOutputSink
from tachikoma_orchestrator.audit.sinks.syslog import SyslogSink
from tachikoma_orchestrator.executions.reaper import Reaper
from tachikoma_orchestrator.executions.revocation import ExecutionsOfAgent
from tachikoma_orchestrator.flower.feed import Feed
from tachikoma_orchestrator.metrics import serve_metrics
from tachikoma_orchestrator.processes.listening import listen, reachable, server_credentials
from tachikoma_orchestrator.processes.parts import Core
from tachikoma_orchestrator.processes.settings import OrchestratorSettings
from tachikoma_orchestrator.store.subscriber import Subscriber

__all__ = ["serve"]

log = structlog.get_logger(__name__)

#: Streams one connection may have open.
MAX_CONCURRENT_STREAMS = 10_000


def _authority(settings: OrchestratorSettings, svid: Svid, join: HostPort, address: HostPort) -> Authority:
    """What agents that join get their certificates from.

    Raises:
        ConfigurationError: it cannot be used.
    """
    assert settings.ca is not None
    names = dns_names(svid.chain[0])
    if not names:
        raise ConfigurationError(
            "the orchestrator's certificate has no DNS name, by which agents that join know it; see docs/identity.md"
        )
    authority = Authority(
        CertificateAuthority.load(settings.ca),
        settings.svid_lifetime,
        str(reachable(settings.join_address, join, "TACHIKOMA_JOIN_ADDRESS")),
        str(reachable(settings.renew_address, address, "TACHIKOMA_RENEW_ADDRESS")),
        names[0],
    )
    authority.check(svid)
    return authority


def _sinks(settings: OrchestratorSettings, identity: SvidSource) -> tuple[FileSink | None, list[Sink]]:
    file = None
    if settings.audit_log is not None:
        file = FileSink(settings.audit_log, identity, rotate_bytes=settings.audit_log_bytes)
    shared: list[Sink] = [SyslogSink(settings.audit_syslog)] if settings.audit_syslog else []
    if settings.audit_stdout:
        shared.append(StandardOutputSink())
    return file, shared


async def _watch_health(subscriber: Subscriber, health: health_aio.HealthServicer) -> None:
    serving: bool | None = None
    while True:
        if serving != subscriber.connected.is_set():
            serving = subscriber.connected.is_set()
            status = health_pb2.HealthCheckResponse
            for name in ("", pb.DESCRIPTOR.services_by_name["RemoteExecution"].full_name):
                await health.set(name, status.SERVING if serving else status.NOT_SERVING)
        await asyncio.sleep(0.5)


async def serve(settings: OrchestratorSettings, ready: Callable[[str], None] | None = None) -> None:
    """Run the orchestrator until SIGTERM or SIGINT.

    Args:
        settings: where everything is.
        ready: called with the address once calls are taken.

    Raises:
        ConfigurationError: identity, policy or address cannot be used.
    """
    core = Core(settings, "orchestrator")
    closed = settings.audit_failure == "closed"
    reaper = Reaper(
        core.redis, core.ledger, core.registry, core.collector,
        lease=settings.lease, interval=settings.sweep, trail=core.trail, audit_closed=closed,
        audit_retention=settings.audit_retention, audit_events=settings.audit_events,
    )  # fmt: skip
    shipping = connect(core.access, name="orchestrator-audit", max_connections=8)
    file, shared = _sinks(settings, core.identity)
    feed = Feed(shipping, core.ledger, core.registry, core.subscriber)
    shipper = Shipper(shipping, core.trail, file, shared, backlog=settings.audit_backlog, closed=closed)

    guard = Guard(core.identity, core.trail, core.registry.revocations, settings.trusted_proxies)
    server = grpc.aio.server(
        interceptors=(guard,),
        options=[
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_concurrent_streams", MAX_CONCURRENT_STREAMS),
            # Clients ping every 20 s while they wait.
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            # Two servers on one port would share its calls without anybody noticing.
            ("grpc.so_reuseport", 0),
        ],
    )
    health = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    service_name = pb.DESCRIPTOR.services_by_name["RemoteExecution"].full_name
    reflection.enable_server_reflection(
        (service_name, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME),
        server,
    )
    address = listen(server, settings.listen, server_credentials(core.identity))
    servers = [server]

    enroller = settings.enroller(core.identity)
    accounts = None
    if enroller is not None:
        accounts = Accounts(connect(enroller, name="orchestrator-enroller", max_connections=2))
    authority = None
    if settings.join_listen is not None:
        servers.append(joining_server())
        joins = listen(servers[1], settings.join_listen, server_credentials(core.identity, clients=False))
        # What agents are told of both addresses is known only now.
        authority = _authority(settings, core.identity.current(), joins, address)
    executions = ExecutionsOfAgent(core.redis, core.ledger, core.identity)
    membership = Membership.over(
        core.redis, core.identity, core.registry.revocations, executions, authority=authority, accounts=accounts
    )
    if authority is not None:
        add_JoiningServicer_to_server(Joining(membership.joins, core.trail), servers[1])
        log.info("orchestrator.lets_join", address=authority.join_address, renew_address=authority.renew_address)
    approvals = Approvals(core.ledger, core.trail, core.admitter, core.identity, core.findings)
    add_RemoteExecutionServicer_to_server(RemoteExecution(core, approvals, membership), server)

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    tasks: list[asyncio.Task[Any]] = []
    try:
        if settings.metrics is not None:
            serve_metrics(settings.metrics)
        background = await core.start()
        for one in servers:
            await one.start()
        tasks += (
            *background,
            asyncio.create_task(reaper.run()),
            asyncio.create_task(guard.watch()),
            asyncio.create_task(feed.run()),
            asyncio.create_task(_watch_health(core.subscriber, health)),
            asyncio.create_task(stop.wait()),
        )
        if file is not None or shared:
            tasks.append(asyncio.create_task(shipper.run()))
        spiffe_id = core.identity.current().spiffe_id
        log.info("orchestrator.ready", address=str(address), spiffe_id=str(spiffe_id), pid=os.getpid())
        if ready is not None:
            ready(str(address))
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if (failure := task.exception()) is not None:
                log.critical("orchestrator.failed", exc_info=failure)
                raise failure
        log.info("orchestrator.stopping")
    finally:
        # 1. No new calls; those under way get a while. Executions go on without us, and are found again.
        await asyncio.gather(*(one.stop(settings.stop_grace.total_seconds()) for one in servers))
        # 2. Then what serves them, and the connections.
        await cancel_all(tasks)
        await shipping.aclose()
        if accounts is not None:
            await accounts.close()
        await core.aclose()
