"""The gRPC server as a process: its parts, its start and its stop.

The background parts run under one supervisor. If one of them fails, all end, and the process ends with the reason in
its log. The process starts without Redis, too: calls then get UNAVAILABLE, and the health service reports NOT_SERVING.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import grpc.aio
import structlog
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection

from tachikoma.config.channels import MAX_MESSAGE_BYTES
from tachikoma.config.tasks import Supervisor, supervised
from tachikoma.exec.v1.remote_execution_pb2_grpc import (
    add_JoiningServicer_to_server,
    add_RemoteExecutionServicer_to_server,
)
from tachikoma.redis.access import connect
from tachikoma.redis.servers import Servers
from tachikoma.vocabulary.clock import duration_ms
from tachikoma_orchestrator.admission.approvals import Approvals
from tachikoma_orchestrator.admission.call_quotas import CallQuotas
from tachikoma_orchestrator.agents.account_copies import AccountCopies
from tachikoma_orchestrator.agents.membership import Membership
from tachikoma_orchestrator.agents.redis_accounts import Accounts
from tachikoma_orchestrator.api.guard import Guard
from tachikoma_orchestrator.api.join_service import Joining, joining_server
from tachikoma_orchestrator.api.remote_execution import RemoteExecution
from tachikoma_orchestrator.api.service import ServiceParts
from tachikoma_orchestrator.audit.shipper import Shipper
from tachikoma_orchestrator.audit.sinks.file import FileSink
from tachikoma_orchestrator.audit.sinks.sink import Sink
from tachikoma_orchestrator.audit.sinks.stdout import StandardOutputSink
from tachikoma_orchestrator.audit.sinks.syslog import SyslogSink
from tachikoma_orchestrator.audit.trail import TrailBounds
from tachikoma_orchestrator.executions.reaper import Reaper, Retention
from tachikoma_orchestrator.executions.retained_output import RetainedOutput
from tachikoma_orchestrator.executions.revocation import ExecutionsOfMembers
from tachikoma_orchestrator.flower.feed import Feed
from tachikoma_orchestrator.processes.health import SERVICE, Health
from tachikoma_orchestrator.processes.joining import WatchedAuthority, open_authority
from tachikoma_orchestrator.processes.listening import listen, server_credentials
from tachikoma_orchestrator.processes.own_renewal import OwnRenewal, renew_at_start
from tachikoma_orchestrator.processes.parts import Core
from tachikoma_orchestrator.processes.settings import OrchestratorSettings
from tachikoma_orchestrator.recordings.folder import RecordingFolder
from tachikoma_orchestrator.recordings.room import Recordings
from tachikoma_orchestrator.store.known import share_known
from tachikoma_orchestrator.store.subscriber import Subscriber

__all__ = ["Server", "serve"]

log = structlog.get_logger(__name__)

#: Streams that one connection may have open.
MAX_CONCURRENT_STREAMS = 10_000
#: Longest TLS handshake.
HANDSHAKE_MS = 10_000
#: Silence on a connection with calls after which it is tested with a ping, and the longest wait for the answer.
KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 8_000, 5_000
#: Shortest time between pings of a client; one that pings more often is disconnected.
MIN_PING_MS = 2_000


async def serve(settings: OrchestratorSettings, ready: Callable[[str], None] | None = None) -> None:
    """Run the orchestrator until SIGTERM or SIGINT.

    Args:
        settings: of the orchestrator.
        ready: called with the address once calls are served.

    Raises:
        ConfigurationError: identity, policy or an address cannot be used.
        Exception: a background part failed.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await Server(settings).run(stop, ready)


class Server:
    """The parts of the process, its gRPC servers, and the background parts that serve them."""

    def __init__(self, settings: OrchestratorSettings) -> None:
        """Put the parts together and listen; no call is served yet. To be used in a running event loop.

        Raises:
            ConfigurationError: identity, policy or an address cannot be used.
        """
        self._settings = settings
        renew_at_start(settings)
        self._core = core = Core(settings, "orchestrator")
        self._renewal = OwnRenewal.of(settings, core.identity)
        self._background_redis = connect(core.access, name="orchestrator-audit", max_connections=8)
        # The audit file may contain events of other processes, whose numbers no later life may use again.
        share_known(self._background_redis, core.known)
        self._output_redis = connect(core.access, name="orchestrator-output", max_connections=2)
        #: Live output for followers, on a connection of its own: a flood of it must not delay results.
        self._output_subscriber = Subscriber(self._output_redis)
        self._guard = self._make_guard()
        self._health = Health(core.subscriber.connected)
        self._recordings = self._open_recordings()
        self._feed = Feed(self._background_redis, core.ledger, core.registry, core.subscriber)
        self._reaper = self._make_reaper()
        self._shipper = self._make_shipper()
        #: The authority for members; None if hosts cannot join here.
        self._authority: WatchedAuthority | None = None
        #: Brings the agents' Redis users to all servers; None without Sentinels, or without the right to make users.
        self._copies: AccountCopies | None = None
        self._accounts = self._open_accounts()
        main = self._make_main_server()
        #: The servers, the main one first.
        self._servers = [main]
        #: The address of the main server, with the port that was taken.
        self.address = listen(main, settings.listen, server_credentials(core.identity))
        membership = self._open_membership()
        add_RemoteExecutionServicer_to_server(RemoteExecution(self._service_parts(membership)), main)

    async def run(self, stop: asyncio.Event, ready: Callable[[str], None] | None = None) -> None:
        """Serve until an event is set.

        Args:
            stop: ends the server.
            ready: called with the address once calls are served.

        Raises:
            Exception: a background part failed.
        """
        try:
            async with supervised() as supervisor:
                await self._start(supervisor)
                self._announce(ready)
                await stop.wait()
                log.info("orchestrator.stopping")
                # 1. Refuse new calls; those in progress get a grace period. Executions go on without the orchestrator.
                await self._stop_servers(self._settings.stop_grace.total_seconds())
            # 2. `supervised` has stopped the background parts that serve the calls.
        except Exception as failure:
            log.critical("orchestrator.failed", exc_info=failure)
            # Calls in progress end at once: the parts that would complete them have ended.
            await self._stop_servers(None)
            raise
        finally:
            # 3. Close the connections, which the parts have used until now.
            await self._close()

    # --- the steps of a run -------------------------------------------------------------------------------------------

    async def _start(self, supervisor: Supervisor) -> None:
        """Start the background parts and the servers."""
        await self._core.start(supervisor)
        self._core.start_metrics(
            supervisor, self._settings.metrics, self._settings.metrics_class, [self._output_subscriber]
        )
        for server in self._servers:
            await server.start()
        supervisor.start(self._output_subscriber.run(), name="output-subscriber")
        supervisor.start(self._reaper.run(), name="reaper")
        supervisor.start(self._guard.run(), name="guard")
        supervisor.start(self._feed.run(), name="feed")
        supervisor.start(self._recordings.run(), name="recordings")
        supervisor.start(self._health.run(), name="health")
        if self._copies is not None:
            supervisor.start(self._copies.run(), name="account-copies")
        if self._authority is not None:
            supervisor.start(self._authority.run(), name="authority")
        if self._renewal is not None:
            supervisor.start(self._renewal.run(), name="renewal")
        if self._shipper is not None:
            supervisor.start(self._shipper.run(), name="shipper")

    def _announce(self, ready: Callable[[str], None] | None) -> None:
        spiffe_id = self._core.identity.current().spiffe_id
        log.info("orchestrator.ready", address=str(self.address), spiffe_id=str(spiffe_id), pid=os.getpid())
        if ready is not None:
            ready(str(self.address))

    async def _stop_servers(self, grace_seconds: float | None) -> None:
        """Stop all servers; calls in progress may continue for the grace period. None ends them at once."""
        await asyncio.gather(*(server.stop(grace_seconds) for server in self._servers))

    async def _close(self) -> None:
        await self._background_redis.aclose()
        await self._output_redis.aclose()
        if self._accounts is not None:
            await self._accounts.close()
        if self._copies is not None:
            await self._copies.close()
        await self._core.aclose()

    # --- the parts ----------------------------------------------------------------------------------------------------

    @property
    def _audit_closed(self) -> bool:
        """True if requests are refused while too many audit events wait for a sink."""
        return self._settings.audit_failure == "closed"

    def _make_guard(self) -> Guard:
        core, settings = self._core, self._settings
        quotas = CallQuotas(
            calls=settings.identity_calls,
            streams=settings.identity_streams,
            request_bytes=settings.identity_request_bytes,
        )
        return Guard(core.identity, core.trail, core.registry.revocations, settings.trusted_proxies, quotas)

    def _make_reaper(self) -> Reaper:
        core, settings = self._core, self._settings
        return Reaper(
            core.redis,
            core.ledger,
            core.registry,
            core.collector,
            lease=settings.lease,
            interval=settings.sweep,
            retention=self._retention(),
            executions=ExecutionsOfMembers(core.redis, core.ledger, core.identity),
            lives=core.lives,
            on_recorded=self._recordings.record,
        )

    def _retention(self) -> Retention:
        core, settings = self._core, self._settings
        bounds = TrailBounds(settings.audit_retention, settings.audit_events, closed=self._audit_closed)
        outputs = RetainedOutput(
            core.redis,
            total_bytes=settings.output_bytes,
            requester_bytes=settings.requester_output_bytes,
            log_bytes=settings.log_bytes,
            retention=settings.output_retention,
        )
        return Retention(core.trail, bounds, outputs)

    def _make_shipper(self) -> Shipper | None:
        """Return the shipper to the configured sinks; None without sinks."""
        core, settings = self._core, self._settings
        file = None
        if settings.audit_log is not None:
            file = FileSink(settings.audit_log, core.identity, rotate_bytes=settings.audit_log_bytes)
            # An event in the file that Redis does not contain shows that Redis went back to an older state.
            core.lives.knows(file.seq, file.cursor)
        shared: list[Sink] = [SyslogSink(settings.audit_syslog)] if settings.audit_syslog else []
        if settings.audit_stdout:
            shared.append(StandardOutputSink())
        if file is None and not shared:
            return None
        return Shipper(
            self._background_redis,
            core.trail,
            file,
            shared,
            backlog=settings.audit_backlog,
            closed=self._audit_closed,
        )

    def _open_recordings(self) -> Recordings:
        core, settings = self._core, self._settings
        recordings = Recordings.over(
            None if settings.recordings is None else RecordingFolder(settings.recordings),
            redis=core.redis, subscriber=self._output_subscriber, identity=core.identity, trail=core.trail,
            ledger=core.ledger, evidence=core.evidence, completions=core.completions,
            max_bytes=settings.recording_bytes, retention=settings.recording_retention,
        )  # fmt: skip
        core.admitter.record_with(recordings.obstacle)
        return recordings

    def _open_accounts(self) -> Accounts | None:
        """Return the manager of the agents' Redis users; None if the orchestrator has no right to manage them."""
        access = self._settings.enroller(self._core.identity)
        if access is None:
            return None
        redis = connect(access, name="orchestrator-enroller", max_connections=2)
        if access.primary is None:
            return Accounts(redis)
        servers = Servers(access, name="orchestrator-enroller")
        core = self._core
        self._copies = AccountCopies(core.redis, servers, core.registry.revocations)
        return Accounts(redis, self._copies.spread)

    def _make_main_server(self) -> grpc.aio.Server:
        settings = self._settings
        server = grpc.aio.server(
            interceptors=(self._guard,),
            options=[
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_receive_message_length", settings.request_bytes),
                ("grpc.max_concurrent_streams", MAX_CONCURRENT_STREAMS),
                ("grpc.max_allowed_incoming_connections", settings.connections),
                ("grpc.max_connection_idle_ms", duration_ms(settings.connection_idle)),
                ("grpc.max_connection_age_ms", duration_ms(settings.connection_age)),
                ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
                # A client that disappeared silently is noticed within the sum of both.
                ("grpc.keepalive_time_ms", KEEPALIVE_MS),
                ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
                # It decides by itself, with a default of a minute, and without regard to the line above.
                ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
                # Clients ping while they wait, as often as the server does or less.
                ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_MS),
                # With it, two servers could listen on one port and share its calls without a warning.
                ("grpc.so_reuseport", 0),
            ],
        )
        self._health.add_to(server)
        health_service = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection.enable_server_reflection((SERVICE, health_service, reflection.SERVICE_NAME), server)
        return server

    def _open_membership(self) -> Membership:
        """Return the membership of agents; with a certificate authority, also listen for hosts that join."""
        core, settings = self._core, self._settings
        joins = None
        if settings.join_listen is not None:
            joins = joining_server()
            address = listen(joins, settings.join_listen, server_credentials(core.identity, clients=False))
            self._authority = open_authority(settings, core.identity, joins=address, listens=self.address)
        membership = Membership.over(
            core.redis,
            core.identity,
            core.registry.revocations,
            core.registry.bound,
            ExecutionsOfMembers(core.redis, core.ledger, core.identity),
            authority=self._authority,
            accounts=self._accounts,
        )
        if joins is not None and self._authority is not None:
            authority = self._authority.current
            add_JoiningServicer_to_server(Joining(membership.joins, core.trail), joins)
            self._servers.append(joins)
            log.info("orchestrator.joining", address=authority.join_address, renew_address=authority.renew_address)
        return membership

    def _service_parts(self, membership: Membership) -> ServiceParts:
        core = self._core
        return ServiceParts(
            redis=core.redis,
            identity=core.identity,
            policies=core.policies,
            trail=core.trail,
            ledger=core.ledger,
            evidence=core.evidence,
            admitter=core.admitter,
            approvals=Approvals(core.ledger, core.trail, core.admitter, core.identity, core.findings),
            completions=core.completions,
            output_subscriber=self._output_subscriber,
            registry=core.registry,
            membership=membership,
            schedule_runner=core.schedule_runner,
            batches=core.batches,
            recordings=self._recordings,
        )
