"""Settings of the two processes: environment variables `TACHIKOMA_…`, or options of their commands."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, IPvAnyNetwork, field_validator, model_validator

from tachikoma.config.settings import Address, OptionalAddress, OptionalAddresses
from tachikoma.errors import ConfigurationError
from tachikoma.identity.svid import SvidSource
from tachikoma.policy.decide import SEARCH_PATH
from tachikoma.redis.access import RedisAccess, RedisSettings
from tachikoma.redis.users import ENROLLER, ORCHESTRATOR, SUBMITTER
from tachikoma.vocabulary.addresses import HostPort
from tachikoma.vocabulary.labels import LABEL_NAME
from tachikoma.vocabulary.policies import RateLimitConfig
from tachikoma.vocabulary.types import Duration, IdentityPlace

__all__ = ["OrchestratorSettings", "SubmitterSettings"]

#: Longest life of certificates of agents that joined. An attacker who owns Redis can remove a revocation, and could
#: then use a stolen certificate for this time.
MAX_SVID_LIFETIME = timedelta(days=30)


class OrchestratorSettings(RedisSettings):
    """The orchestrator's files, addresses and bounds."""

    #: Folder with svid.pem, svid_key.pem and svid_bundle.pem, or unix:///path of the SPIFFE Workload API. Without one,
    #: the Workload API that SPIFFE_ENDPOINT_SOCKET names is used.
    identity: IdentityPlace | None = None
    #: Policy file or folder. Only commands that it allows are run.
    policy: Path
    #: Schedules: a file, a folder of files, or `module:app` of a Celery application.
    schedules: str = ""
    #: Address of the gRPC server; port 0 takes a free one.
    listen: Address = HostPort("127.0.0.1", 8534)
    #: Folder of the certificate authority with which hosts join (`tachikoma identity ca init`). Set it together with
    #: `join_listen`; without them no host can join.
    ca: Path | None = None
    #: Address on which hosts join.
    join_listen: OptionalAddress = None
    #: Address that hosts use to reach `join_listen`, or those of several orchestrators with commas; by default the same
    #: address.
    join_address: OptionalAddresses = None
    #: Address that agents use to reach `listen`, to renew their certificates; by default the same address.
    renew_address: OptionalAddresses = None
    #: Lifetime of the certificates of agents that joined, and of the orchestrator's own if its authority issued it.
    #: They are renewed after half of it.
    svid_lifetime: Duration = timedelta(hours=24)
    #: Lifetime of the certificates of people who logged in with a token. After half of it, the next command renews
    #: them.
    user_svid_lifetime: Duration = timedelta(days=7)
    #: URL that agents use to reach Redis, without credentials; by default `redis_url`. `tachikoma worker install`
    #: writes it into the settings of the worker.
    agents_redis_url: str = ""
    #: File with the password of the Redis user `enroller`, which creates and deletes the users of agents. This password
    #: gives every right in Redis. Without it, an administrator manages the users of agents.
    enroller_password_file: Path | None = None
    #: Networks of proxies between clients and this server whose `x-forwarded-for` is trusted.
    trusted_proxies: tuple[IPvAnyNetwork, ...] = ()
    #: Address on which Prometheus reads metrics (docs/metrics.md), without authentication.
    metrics: OptionalAddress = None
    #: Name of the label that operators bind to agents (`tachikoma agents label`) by whose value executions are counted.
    #: The first 20 values are counted apart, all others as `other`; by default executions are counted without it.
    metrics_class: str = Field(default="", pattern=f"^({LABEL_NAME})?$")
    #: Size in bytes of the largest message to the orchestrator. The largest valid request has 4 MiB of standard input,
    #: plus command and environment.
    request_bytes: int = Field(default=5 * 1024 * 1024, ge=64 * 1024, le=64 * 1024 * 1024)
    #: Largest number of calls in progress of one identity, streams included; more are refused as RESOURCE_EXHAUSTED.
    identity_calls: int = Field(default=2000, ge=1, le=100_000)
    #: Largest number of streams in progress of one identity.
    identity_streams: int = Field(default=1000, ge=1, le=100_000)
    #: Largest number of bytes of the requests of one identity's calls in progress.
    identity_request_bytes: int = Field(default=64 * 1024 * 1024, ge=64 * 1024)
    #: Largest number of open connections; more are closed at once.
    connections: int = Field(default=10_000, ge=1, le=1_000_000)
    #: Time after which a connection without a call is closed.
    connection_idle: Duration = timedelta(minutes=5)
    #: Age at which a connection takes no new calls; its clients connect again. Calls in progress continue.
    connection_age: Duration = timedelta(hours=1)
    #: Limits of each queue of an agent.
    rate_limit: RateLimitConfig = RateLimitConfig()
    #: Largest number of executions that may wait for an approval, of all requesters together.
    approvals_size: int = Field(default=1000, ge=1, le=100_000)
    #: Whether the audit event that allows an execution must be on the disk of Redis before its order is queued
    #: (WAITAOF). This takes up to a second with `appendfsync everysec`, and little time with `always`.
    audit_durable: bool = True
    #: Time for which ended executions stay in the ledger, and claims in Redis. It must be longer than the longest
    #: execution.
    retention: Duration = timedelta(days=30)
    #: Largest number of bytes of output that Redis retains of all ended executions; the oldest is deleted first.
    output_bytes: int = Field(default=2 * 1024 * 1024 * 1024, ge=1024 * 1024)
    #: Largest number of bytes of output that Redis retains of the ended executions of one requester.
    requester_output_bytes: int = Field(default=256 * 1024 * 1024, ge=1024 * 1024)
    #: The largest of the agents' settings of the same name: bytes of output that an agent retains of one execution.
    log_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    #: The longest of the agents' settings of the same name: how long agents retain output and results.
    output_retention: Duration = timedelta(days=1)
    #: File to which the audit trail is written, with a hash chain.
    audit_log: Path | None = None
    #: Size in bytes at which the file of the audit trail is rotated.
    audit_log_bytes: int = Field(default=100 * 1024 * 1024, ge=1024)
    #: Syslog to which the audit trail is sent: unix:///dev/log, tcp://host:port or tls://host:port.
    audit_syslog: str | None = None
    #: Whether the audit trail is written to standard output.
    audit_stdout: bool = False
    #: Largest number of events that may wait for one sink.
    audit_backlog: int = Field(default=10_000, ge=1)
    #: What happens to requests while more events than that wait: `closed` refuses them, `open` admits them.
    audit_failure: Literal["closed", "open"] = "closed"
    #: Existing folder for recordings of interactive executions; all orchestrators share it. Without a folder nothing is
    #: recorded, and executions for which policy requires a recording are refused.
    recordings: Path | None = None
    #: How long recordings are retained.
    recording_retention: Duration = timedelta(days=90)
    #: Largest number of bytes of output in one recording. At this limit an execution for which policy requires a
    #: recording is ended.
    recording_bytes: int = Field(default=1024 * 1024 * 1024, ge=1024)
    #: Age of the oldest events that the audit trail in Redis keeps.
    audit_retention: Duration = timedelta(days=90)
    #: Largest number of events that the audit trail in Redis keeps.
    audit_events: int = Field(default=1_000_000, ge=1000)
    #: Number of refused requests of one identity, or of an address without an identity, that get an event each; one
    #: more is allowed every two minutes. Further ones are counted, and one event reports the count every ten minutes.
    audit_refusals: int = Field(default=200, ge=1, le=100_000)
    #: File with the key of the HMAC over commands in the audit trail: 32 bytes or more, the same for all orchestrators.
    #: Without one, events have no HMAC.
    audit_key: Path | None = None
    #: Time without a heartbeat after which an agent's executions are reported as LOST.
    lease: Duration = timedelta(seconds=45)
    #: Time between two sweeps of the reaper, which ends executions that no agent will end.
    sweep: Duration = timedelta(seconds=5)
    #: Folders in which a program name without a slash is looked up, in this order.
    search_path: tuple[str, ...] = SEARCH_PATH
    #: Time for which calls in progress may continue after the process was asked to stop.
    stop_grace: Duration = timedelta(seconds=5)
    #: File to which the duration of each stage of each execution is appended, as lines of JSON; by default nothing is
    #: written. For `make bench ARGS=--profile`.
    stages: Path | None = None
    #: Lowest severity of log lines that are written: debug, info, warning or error.
    log_level: str = "info"

    @field_validator("svid_lifetime", "user_svid_lifetime")
    @classmethod
    def _check_lifetime(cls, value: timedelta) -> timedelta:
        if not timedelta(seconds=1) <= value <= MAX_SVID_LIFETIME:
            raise ValueError(f"must be between a second and {MAX_SVID_LIFETIME.days} days")
        return value

    @model_validator(mode="after")
    def _check_joining(self) -> Self:
        if (self.ca is None) != (self.join_listen is None):
            raise ValueError("TACHIKOMA_CA and TACHIKOMA_JOIN_LISTEN are set together or not at all")
        return self

    def redis(self, identity: SvidSource) -> RedisAccess:
        """Return the access to Redis of the orchestrator's own user. Raises as `RedisAccess.of` does."""
        return RedisAccess.of(self, identity=identity, user=ORCHESTRATOR)

    def enroller(self, identity: SvidSource) -> RedisAccess | None:
        """Return the access to Redis that manages users; None if it is not configured. Raises as `RedisAccess.of`."""
        if self.enroller_password_file is None:
            return None
        changed = {"redis_user": ENROLLER, "redis_password_file": self.enroller_password_file}
        return RedisAccess.of(self.model_copy(update=changed), identity=identity, user=ENROLLER)


class SubmitterSettings(OrchestratorSettings):
    """The submitter's settings: the orchestrator's, and its own."""

    #: Largest number of tasks that wait for their execution at once; each occupies a thread.
    submitter_slots: int = Field(default=100, ge=1, le=10_000)
    #: Address on which Prometheus reads metrics (docs/metrics.md), without authentication.
    submitter_metrics: OptionalAddress = None
    #: File with the password of the Redis user `submitter`, with which Celery takes messages and sends callbacks.
    submitter_password_file: Path | None = None

    def celery(self, identity: SvidSource) -> RedisAccess:
        """Return the access to Redis that Celery uses.

        Raises:
            ConfigurationError: Celery would get the orchestrator's rights; or as `RedisAccess.of` raises.
        """
        if self.submitter_password_file is None and (self.redis_password_file is not None or self.redis_user):
            # Applications choose the queue of a callback. With the orchestrator's rights they could choose any queue.
            raise ConfigurationError(
                "the submitter needs the password of the Redis user `submitter` besides the orchestrator's; "
                "set TACHIKOMA_SUBMITTER_PASSWORD_FILE"
            )
        own = {"redis_user": SUBMITTER, "redis_password_file": self.submitter_password_file}
        given = self.model_copy(update=own) if self.submitter_password_file is not None else self
        return RedisAccess.of(given, identity=identity, user=SUBMITTER)
