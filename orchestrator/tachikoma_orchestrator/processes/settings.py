"""Settings of the orchestrator: environment variables `TACHIKOMA_…`, or options of the command."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, IPvAnyNetwork, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from tachikoma.config.settings import Address, OptionalAddress
from tachikoma.identity.open import IdentityPlace
from tachikoma.identity.svid import SvidSource
from tachikoma.policy.decide import SEARCH_PATH
from tachikoma.redis.access import RedisAccess, RedisSettings
from tachikoma.redis.users import ENROLLER, ORCHESTRATOR
from tachikoma.vocabulary.addresses import HostPort
from tachikoma.vocabulary.policies import RateLimitConfig
from tachikoma.vocabulary.types import Duration

__all__ = ["OrchestratorSettings"]

#: Longest life of certificates of agents that joined: so long somebody who takes one away with Redis could use it.
MAX_SVID_LIFETIME = timedelta(days=30)


class OrchestratorSettings(RedisSettings):
    """Where the orchestrator finds what it needs, and its bounds."""

    model_config = SettingsConfigDict(env_prefix="TACHIKOMA_", frozen=True, extra="ignore")

    #: Folder with svid.pem, svid_key.pem and svid_bundle.pem, or unix:///path of the SPIFFE Workload API. Without one,
    #: the Workload API that SPIFFE_ENDPOINT_SOCKET names.
    identity: IdentityPlace | None = None
    #: The policy file. Nothing runs that it does not allow.
    policy: Path
    #: Schedules: a file, a folder of them, or `module:app` of a Celery application; none by default.
    schedules: str = ""
    #: Address of the gRPC server; port 0 takes a free one.
    listen: Address = HostPort("127.0.0.1", 8534)
    #: Folder of the certificate authority that agents join with (`tachikoma identity ca init`), set together with
    #: `join_listen`. Without both no host can join.
    ca: Path | None = None
    #: Address at which hosts join.
    join_listen: OptionalAddress = None
    #: `join_listen` as hosts reach it; by default the same.
    join_address: OptionalAddress = None
    #: `listen` as agents that renew their certificates reach it; by default the same.
    renew_address: OptionalAddress = None
    #: How long certificates of agents last that joined; they are renewed at half of it.
    svid_lifetime: Duration = timedelta(hours=24)
    #: File with the password of the Redis user `enroller`, with which users of agents are made and removed. Whoever has
    #: it can give anybody any right in Redis.
    enroller_password_file: Path | None = None
    #: Networks of proxies between clients and this server; what one of them says in `x-forwarded-for` is believed.
    trusted_proxies: tuple[IPvAnyNetwork, ...] = ()
    #: Address at which Prometheus finds metrics, host:port; none by default. Whoever reaches it reads them.
    metrics: OptionalAddress = None
    #: Bounds of each agent's queue.
    rate_limit: RateLimitConfig = RateLimitConfig()
    #: Executions that may wait for an approval, of all requesters.
    approvals_size: int = Field(default=1000, ge=1, le=100_000)
    #: Whether what authorises an execution is on the disk of Redis before its order is on the queue (WAITAOF). With
    #: `appendfsync everysec` that takes up to a second; with `always` it is quick.
    audit_durable: bool = True
    #: How long ended executions stay in the ledger, and claims in Redis. Longer than any execution can last.
    retention: Duration = timedelta(days=30)
    #: File to which the audit trail is written, with a hash chain.
    audit_log: Path | None = None
    #: Bytes at which that file is rotated.
    audit_log_bytes: int = Field(default=100 * 1024 * 1024, ge=1024)
    #: Syslog to which it is sent: unix:///dev/log, tcp://host:port or tls://host:port.
    audit_syslog: str | None = None
    #: Whether it is written to standard output.
    audit_stdout: bool = False
    #: Events that may wait for one of these sinks.
    audit_backlog: int = Field(default=10_000, ge=1)
    #: What becomes of requests when more wait: `closed` refuses them, `open` lets them through.
    audit_failure: Literal["closed", "open"] = "closed"
    #: How long the audit trail in Redis goes back.
    audit_retention: Duration = timedelta(days=90)
    #: How many events the audit trail in Redis holds at most.
    audit_events: int = Field(default=1_000_000, ge=1000)
    #: File with the key of the HMAC over commands in the audit trail, 32 bytes or more, the same for all orchestrators.
    #: Without one, events have no HMAC.
    audit_key: Path | None = None
    #: An agent that was not heard of for so long has lost what it ran.
    lease: Duration = timedelta(seconds=45)
    #: How often the reaper looks.
    sweep: Duration = timedelta(seconds=5)
    #: Where a bare program name is looked up, in this order.
    search_path: tuple[str, ...] = SEARCH_PATH
    #: How long calls under way may go on after a stop was asked for.
    stop_grace: Duration = timedelta(seconds=5)
    #: Least severe log line that is written: debug, info, warning or error.
    log_level: str = "info"

    @field_validator("svid_lifetime")
    @classmethod
    def _short(cls, value: timedelta) -> timedelta:
        if not timedelta(seconds=1) <= value <= MAX_SVID_LIFETIME:
            raise ValueError(f"must be between a second and {MAX_SVID_LIFETIME.days} days")
        return value

    @model_validator(mode="after")
    def _joining(self) -> Self:
        if (self.ca is None) != (self.join_listen is None):
            raise ValueError("TACHIKOMA_CA and TACHIKOMA_JOIN_LISTEN are set together or not")
        return self

    def enroller(self, identity: SvidSource) -> RedisAccess | None:
        """How Redis is reached to make and remove users, if that is ours. Raises what `RedisAccess.of` does."""
        if self.enroller_password_file is None:
            return None
        changed = {"redis_user": ENROLLER, "redis_password_file": self.enroller_password_file}
        return RedisAccess.of(self.model_copy(update=changed), identity=identity, user=ENROLLER)

    def redis(self, identity: SvidSource) -> RedisAccess:
        """How Redis is reached. Raises what `RedisAccess.of` does."""
        return RedisAccess.of(self, identity=identity, user=ORCHESTRATOR)
