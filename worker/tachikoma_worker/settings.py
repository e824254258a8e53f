"""Settings of an agent's worker: environment variables `TACHIKOMA_…`, or options of the command."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from tachikoma.identity.svid import IdentityPlace, SvidSource
from tachikoma.redis.access import RedisAccess, RedisSettings
from tachikoma.redis.users import agent_user
from tachikoma.streams.heartbeat import Labels
from tachikoma.vocabulary.limits import capability_mask
from tachikoma.vocabulary.types import Duration, Identifier

__all__ = ["WorkerSettings"]


class WorkerSettings(RedisSettings):
    """Where the worker finds what it needs, and its bounds."""

    model_config = SettingsConfigDict(env_prefix="TACHIKOMA_", frozen=True, extra="ignore")

    #: The agent this worker is.
    agent_id: Identifier
    #: Folder with svid.pem, svid_key.pem and svid_bundle.pem, or unix:///path of the SPIFFE Workload API. Without one,
    #: the Workload API that SPIFFE_ENDPOINT_SOCKET names.
    identity: IdentityPlace | None = None
    #: Folder for the journal. It must outlive the worker: it is what keeps a command from starting twice.
    data: Path
    #: Name of the one service that may sign orders: spiffe://<trust domain>/service/<name>.
    orchestrator: str = "orchestrator"
    #: What the operator says of this agent.
    labels: Labels = Field(default_factory=dict)
    #: Commands that run at once; more wait on the queue.
    slots: int = Field(default=64, ge=1, le=4096)
    #: User for requests that name none; empty is nobody, or without root the user the worker runs as.
    user: str = ""
    #: What to do where this host cannot enforce a limit that policy sets: refuse the order, or run it without.
    limits: Literal["enforce", "best-effort"] = "enforce"
    #: The most capabilities that commands run as root may keep, where policy grants them (capabilities(7)), or "all".
    capabilities: tuple[str, ...] = ()
    #: A policy file of this agent's own; it can only take away from what an order grants.
    local_policy: Path | None = None
    #: Where the agent's cgroups are made: below the top of the tree, below the worker's own cgroup (systemd's
    #: Delegate=yes), or below the one of that path, as /system.slice/tachikoma-spawner.service.
    cgroup: Annotated[str, Field(pattern=r"^(top|own|/.+)$")] = "top"
    #: Name of the directory they are in.
    cgroup_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")] = "tachikoma"
    #: Socket of the spawner; by default one of the worker's own, in `data`.
    spawner: Path | None = None
    #: Bytes of each stream that a response holds, half of them head and half tail.
    excerpt_bytes: int = Field(default=1024 * 1024, ge=2, le=16 * 1024 * 1024)
    #: Bytes of output that the log in Redis holds for one execution.
    log_bytes: int = Field(default=64 * 1024 * 1024, ge=1024 * 1024)
    #: Bytes of output that the agent's disk holds for one execution: while Redis is away, and for a worker that is
    #: started again. Of an execution with more, such a worker no longer knows the SHA-256.
    spool_bytes: int = Field(default=256 * 1024 * 1024, ge=1024 * 1024)
    #: How long output and results can be read after the end.
    output_retention: Duration = timedelta(days=1)
    #: Between TERM and KILL.
    kill_grace: Duration = timedelta(seconds=10)
    #: How long commands may go on after the worker was asked to stop; then they are ended.
    stop_grace: Duration = timedelta(seconds=30)
    #: Whether a worker that is asked to stop leaves its commands to the next one instead. Its spawner has to outlive it
    #: (systemd's KillMode=process).
    leave_running: bool = False
    #: How long the worker waits on an empty queue before it asks again. Idle traffic against nothing else.
    poll: Duration = timedelta(seconds=20)
    #: Least severe log line that is written: debug, info, warning or error.
    log_level: str = "info"

    @field_validator("capabilities")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        capability_mask(value)
        return value

    def redis(self, identity: SvidSource) -> RedisAccess:
        """How Redis is reached. Raises what `RedisAccess.of` does."""
        return RedisAccess.of(self, identity=identity, user=agent_user(self.agent_id))
