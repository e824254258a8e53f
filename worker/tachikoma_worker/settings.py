"""Settings of an agent's worker: options of the command, or environment variables `TACHIKOMA_…`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from tachikoma.config.settings import OptionalAddress
from tachikoma.identity.svid import SvidSource
from tachikoma.redis.access import RedisAccess, RedisSettings
from tachikoma.redis.users import agent_user
from tachikoma.streams.heartbeat import Labels
from tachikoma.vocabulary.limits import (
    DEFAULT_CPU_WEIGHT,
    DEFAULT_MEMORY,
    DEFAULT_PIDS,
    capability_mask,
    memory_limit,
)
from tachikoma.vocabulary.types import Duration, Identifier, IdentityPlace

__all__ = ["PASSWORD_FILE", "WorkerSettings"]

#: Name of the file in the identity's folder to which `worker join` writes the agent's Redis password.
PASSWORD_FILE = "redis_password"  # noqa: S105 (its name)


class WorkerSettings(RedisSettings):
    """Settings of an agent's worker: its identity, its folders, and its bounds."""

    #: Id of the agent that this worker runs.
    agent_id: Identifier
    #: Folder with svid.pem, svid_key.pem and svid_bundle.pem, or unix:///path of the SPIFFE Workload API. Without one,
    #: the Workload API that SPIFFE_ENDPOINT_SOCKET names is used.
    identity: IdentityPlace | None = None
    #: Folder of the journal and the spools. Keep it across restarts and upgrades: the journal prevents a second start
    #: of a command.
    data: Path
    #: Name of the only service that may sign orders: spiffe://<trust domain>/service/<name>.
    orchestrator: str = "orchestrator"
    #: Labels that the agent reports. Only the agent's own policy file uses them; for the orchestrator's policy an
    #: operator binds labels with `tachikoma agents label`.
    labels: Labels = Field(default_factory=dict)
    #: Largest number of commands that run at the same time; further orders wait on the queue.
    slots: int = Field(default=64, ge=1, le=4096)
    #: User for requests that name none. Empty: nobody if the spawner is root, else the user of the spawner.
    user: str = ""
    #: Lowest level of isolation of commands. Policies and requests may demand a higher one.
    isolation: Literal["shared", "private", "sealed"] = "shared"
    #: Largest size in bytes of the temporary folders of a requester, or of an execution, if commands are isolated.
    tmp_bytes: int = Field(default=256 * 1024 * 1024, ge=1024 * 1024)
    #: Largest number of files and folders in these temporary folders.
    tmp_inodes: int = Field(default=100_000, ge=1000)
    #: Time without a command of a requester after which the requester's temporary folders are removed.
    tmp_age: Duration = timedelta(days=1)
    #: User ids for the users that requesters get if commands are isolated and name no user. No other program of the
    #: host may use these ids.
    uid_range: Annotated[str, Field(pattern=r"^[1-9][0-9]{3,9}-[1-9][0-9]{3,9}$")] = "70000-79999"
    #: If this host cannot enforce a limit that policy sets: refuse the order, or run it without the limit.
    limits: Literal["enforce", "best-effort"] = "enforce"
    #: Memory of a command if neither policy nor request limits it: a percentage of the host's, bytes such as 2GiB, or
    #: "none".
    default_memory: str = DEFAULT_MEMORY
    #: Largest number of processes and threads of a command if neither policy nor request limits it; 0 for no limit.
    default_pids: int = Field(default=DEFAULT_PIDS, ge=0, le=4_000_000)
    #: Weight of a command when processors are busy, if neither policy nor request sets one.
    default_cpu_weight: int = Field(default=DEFAULT_CPU_WEIGHT, ge=1, le=10_000)
    #: Capabilities (capabilities(7)) that commands run as root keep if policy grants them, or "all".
    capabilities: tuple[str, ...] = ()
    #: A policy file of this agent, which can only remove rights from orders; by default there is none.
    local_policy: Path | None = None
    #: Where the agent's cgroups are created: "top" for the top of the tree, "own" for the worker's own cgroup
    #: (systemd's Delegate=yes), or the path of another cgroup, such as /system.slice/tachikoma-spawner.service.
    cgroup: Annotated[str, Field(pattern=r"^(top|own|/.+)$")] = "top"
    #: Name of the directory that contains the agents' cgroups.
    cgroup_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")] = "tachikoma"
    #: Socket of a spawner that is already running. By default the worker starts its own, with its socket in `data`.
    spawner: Path | None = None
    #: Largest number of bytes of each output stream in a response: half of them from the beginning, half from the end.
    excerpt_bytes: int = Field(default=1024 * 1024, ge=2, le=16 * 1024 * 1024)
    #: Largest number of bytes of output of one execution in Redis.
    log_bytes: int = Field(default=64 * 1024 * 1024, ge=1024 * 1024)
    #: Largest number of bytes of output of one execution on the agent's disk, where it waits while Redis is unavailable
    #: or the worker restarts. If the output is longer, a restarted worker cannot report its SHA-256.
    spool_bytes: int = Field(default=256 * 1024 * 1024, ge=1024 * 1024)
    #: Time for which output and results are retained after the end of an execution.
    output_retention: Duration = timedelta(days=1)
    #: Time between TERM and KILL, unless policy sets another.
    kill_grace: Duration = timedelta(seconds=10)
    #: Time for which commands may continue after the worker was asked to stop; then they are killed.
    stop_grace: Duration = timedelta(seconds=30)
    #: Whether a worker that is asked to stop leaves its commands to the next worker instead. The spawner must outlive
    #: the worker (systemd's KillMode=process).
    leave_running: bool = False
    #: Longest wait on an empty queue before the worker asks again. A connection that broke silently is noticed
    #: 8 s later.
    poll: Duration = timedelta(seconds=5)
    #: Address on which Prometheus reads metrics (docs/metrics.md), without authentication.
    worker_metrics: OptionalAddress = None
    #: File to which the duration of each stage of each execution is appended, as lines of JSON; by default nothing is
    #: written. For `make bench ARGS=--profile`.
    stages: Path | None = None
    #: Lowest severity of log lines that are written: debug, info, warning or error.
    log_level: str = "info"

    @field_validator("uid_range")
    @classmethod
    def _ascending(cls, value: str) -> str:
        first, last = (int(part) for part in value.split("-"))
        if not first <= last < 2**32 - 1:
            raise ValueError("must be two numbers of users, the lower one first, such as 70000-79999")
        return value

    @field_validator("default_memory")
    @classmethod
    def _amount(cls, value: str) -> str:
        memory_limit(value, 2**40)
        return value

    @field_validator("capabilities")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        capability_mask(value)
        return value

    def redis(self, identity: SvidSource) -> RedisAccess:
        """Return the access to Redis with the agent's identity. Raises as `RedisAccess.of`.

        Without a setting for the password, the one that `worker join` has written next to the identity is used.
        """
        given: RedisSettings = self
        if self.redis_password_file is None and isinstance(self.identity, Path):
            joined = self.identity / PASSWORD_FILE
            if joined.exists() and urlsplit(self.redis_url).password is None:
                given = self.model_copy(update={"redis_password_file": joined})
        return RedisAccess.of(given, identity=identity, user=agent_user(self.agent_id))
