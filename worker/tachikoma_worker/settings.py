"""Settings of an agent's worker: options of the command, or environment variables `TACHIKOMA_…`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from tachikoma.config.settings import OptionalAddress
from tachikoma.identity.open import IdentityPlace
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
from tachikoma.vocabulary.types import Duration, Identifier

__all__ = ["PASSWORD_FILE", "WorkerSettings"]

#: Name of the file in the identity's folder to which `worker join` writes the agent's Redis password.
PASSWORD_FILE = "redis_password"  # noqa: S105 (its name)


class WorkerSettings(RedisSettings):
    """Settings of an agent's worker: its identity, its folders, and its bounds."""

    #: Id of the agent that this worker runs.
    agent_id: Identifier
    #: Folder with svid.pem, svid_key.pem and svid_bundle.pem, or unix:///path of the SPIFFE Workload API. None: the
    #: Workload API that SPIFFE_ENDPOINT_SOCKET names.
    identity: IdentityPlace | None = None
    #: Folder of the journal and the spools. It must outlive the worker: it prevents a second start of a command.
    data: Path
    #: Name of the only service that may sign orders: spiffe://<trust domain>/service/<name>.
    orchestrator: str = "orchestrator"
    #: Labels that the agent reports, and by which its own policy file decides. The orchestrator's policy does not use
    #: them: an operator binds labels with `tachikoma agents label`.
    labels: Labels = Field(default_factory=dict)
    #: Commands that run at the same time; further orders wait on the queue.
    slots: int = Field(default=64, ge=1, le=4096)
    #: User for requests that name none. Empty: nobody if the spawner is root, else the user of the spawner.
    user: str = ""
    #: Weakest isolation of commands: shared, private or sealed. Policies and requests may demand more.
    isolation: Literal["shared", "private", "sealed"] = "shared"
    #: Bytes of a requester's temporary folders, and of each of an execution's own, where commands are isolated.
    tmp_bytes: int = Field(default=256 * 1024 * 1024, ge=1024 * 1024)
    #: Files and folders in them.
    tmp_inodes: int = Field(default=100_000, ge=1000)
    #: A requester's temporary folders are removed after this time without a command of that requester.
    tmp_age: Duration = timedelta(days=1)
    #: Numbers of the users that requesters get where commands are isolated and name no user. No other program of the
    #: host may use them.
    uid_range: Annotated[str, Field(pattern=r"^[1-9][0-9]{3,9}-[1-9][0-9]{3,9}$")] = "70000-79999"
    #: If this host cannot enforce a limit that policy sets: refuse the order, or run it without the limit.
    limits: Literal["enforce", "best-effort"] = "enforce"
    #: Memory of a command where neither policy nor request limits it: a percentage of the host's, bytes such as 2GiB,
    #: or "none".
    default_memory: str = DEFAULT_MEMORY
    #: Processes and threads of a command where neither policy nor request limits them; 0 for no limit.
    default_pids: int = Field(default=DEFAULT_PIDS, ge=0, le=4_000_000)
    #: Weight for the share of the processors where neither policy nor request names one.
    default_cpu_weight: int = Field(default=DEFAULT_CPU_WEIGHT, ge=1, le=10_000)
    #: Capabilities that commands run as root may keep at most, where policy grants them (capabilities(7)), or "all".
    capabilities: tuple[str, ...] = ()
    #: A policy file of this agent's own, which can only narrow an order. None: there is no such policy.
    local_policy: Path | None = None
    #: Where the agent's cgroups are created: "top" for the top of the tree, "own" for the worker's own cgroup
    #: (systemd's Delegate=yes), or the path of another cgroup, such as /system.slice/tachikoma-spawner.service.
    cgroup: Annotated[str, Field(pattern=r"^(top|own|/.+)$")] = "top"
    #: Name of the directory that contains the agents' cgroups.
    cgroup_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")] = "tachikoma"
    #: Socket of a spawner that is already running. None: the worker starts its own, with its socket in `data`.
    spawner: Path | None = None
    #: Bytes of each stream that a response contains, half of them head and half tail.
    excerpt_bytes: int = Field(default=1024 * 1024, ge=2, le=16 * 1024 * 1024)
    #: Bytes of output that the log in Redis holds for one execution.
    log_bytes: int = Field(default=64 * 1024 * 1024, ge=1024 * 1024)
    #: Bytes of output that the agent's disk holds for one execution, for an unavailable Redis and for a restarted
    #: worker. Of a longer output, a restarted worker does not know the SHA-256.
    spool_bytes: int = Field(default=256 * 1024 * 1024, ge=1024 * 1024)
    #: Lifetime of output and results after the ending.
    output_retention: Duration = timedelta(days=1)
    #: Time between TERM and KILL, unless policy sets another.
    kill_grace: Duration = timedelta(seconds=10)
    #: Time that commands may run on after the worker was asked to stop; then they are killed.
    stop_grace: Duration = timedelta(seconds=30)
    #: Whether a worker that is asked to stop leaves its commands to the next worker instead. The spawner must outlive
    #: the worker (systemd's KillMode=process).
    leave_running: bool = False
    #: Longest wait on an empty queue before the worker asks again. A connection that broke without a word is noticed
    #: 8 s later.
    poll: Duration = timedelta(seconds=5)
    #: Address on which Prometheus reads metrics (docs/metrics.md), without authentication.
    worker_metrics: OptionalAddress = None
    #: File to which the duration of each stage of each execution is appended, as lines of JSON; None for no file. For
    #: `make bench ARGS=--profile`.
    stages: Path | None = None
    #: Least severe lines in the log: debug, info, warning or error.
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
