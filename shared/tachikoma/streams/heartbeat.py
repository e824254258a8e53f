"""The heartbeat of an agent: its registration, its lease and the state of its host."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from tachikoma.vocabulary.types import Identifier, Milliseconds

__all__ = [
    "HEARTBEAT_SECONDS",
    "LEASE_SECONDS",
    "MAX_HELD",
    "MAX_ROOTS",
    "REST_SECONDS",
    "Contender",
    "Heartbeat",
    "Labels",
    "RememberedLife",
    "Started",
    "Trust",
]

#: Seconds for which an agent counts as online after its last heartbeat.
LEASE_SECONDS = 15
#: Seconds between heartbeats. One that would say nothing new only renews the lease.
HEARTBEAT_SECONDS = 5
#: Seconds after which a heartbeat is sent although it says nothing new.
REST_SECONDS = 30


# The fields have bounds, since an agent may be hostile and one answer lists all agents.
Name = Annotated[str, Field(max_length=255)]
Labels = Annotated[
    dict[Annotated[str, Field(max_length=128)], Annotated[str, Field(max_length=128)]], Field(max_length=64)
]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Measure = Annotated[float, Field(ge=0, allow_inf_nan=False)]


#: Executions that a heartbeat lists at most; an agent that holds more lists none.
MAX_HELD = 1024
#: Largest number of roots that a heartbeat lists.
MAX_ROOTS = 32
KeyDigest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Trust(BaseModel):
    """An agent's identity and bundle, for `tachikoma identity check`. Unverified: no decision depends on it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    #: SPIFFE ID of the agent.
    spiffe_id: Annotated[str, Field(max_length=2048)]
    #: Expiry of the certificate, in milliseconds since the epoch.
    expires_ms: Milliseconds
    #: `key_digest` of the root of its chain; empty if its bundle does not contain the root.
    root: KeyDigest | Literal[""] = ""
    #: `key_digest` of each root in its bundle.
    bundle: Annotated[tuple[KeyDigest, ...], Field(max_length=MAX_ROOTS)] = ()


class Heartbeat(BaseModel):
    """The value of `agent.<id>:info`, and a message on `agent.<id>:events`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["heartbeat"] = "heartbeat"
    #: Random id of the agent's journal, copied into its claims; a changed id means that earlier claims are unknown.
    boot: Name
    #: Random id of the run of its worker.
    run: Name
    #: Version of Tachikoma.
    version: Name
    #: Name of its host.
    hostname: Name
    #: Its labels.
    labels: Labels = Field(default_factory=dict)
    #: Number of executions that it runs.
    running: Count
    #: Number of executions that it may run at once.
    slots: Count
    #: Load average over one minute.
    load: Measure
    #: Share of its memory that is in use, 0 to 1.
    memory_used: Measure
    #: Share of the disk of its data directory that is in use, 0 to 1.
    disk_used: Measure
    #: Limits and protections that its host cannot enforce, for people.
    warnings: Annotated[tuple[Annotated[str, Field(max_length=512)], ...], Field(max_length=32)] = ()
    #: Levels of isolation that its host can enforce; empty from older agents.
    isolation: Annotated[tuple[Annotated[str, Field(max_length=32)], ...], Field(max_length=8)] = ()
    #: Its identity and bundle; None from older agents.
    trust: Trust | None = None
    #: Ids of the executions that it holds, until their receipts are delivered; None if it does not report them.
    executions: Annotated[tuple[Identifier, ...], Field(max_length=MAX_HELD)] | None = None
    #: Versions of the formats that its worker reads and writes; empty from older agents.
    formats: Annotated[dict[Annotated[str, Field(max_length=32)], Count], Field(max_length=32)] = Field(
        default_factory=dict
    )
    #: Time of the heartbeat by the clock of its host, in milliseconds since the epoch; None from older agents.
    sent_ms: Milliseconds | None = None
    #: Number of queues beside its main one that its worker reads; 0 from older agents.
    queues: Count = 0
    #: The signed `LifeRecord` of the latest life of Redis to which it has written its reports again; empty for none.
    life: Annotated[str, Field(max_length=16 * 1024)] = ""

    def says_the_same(self, other: Heartbeat) -> bool:
        """Return True if only load, memory, disk and time differ from another heartbeat, and no execution is held."""
        measures = {"load": 0.0, "memory_used": 0.0, "disk_used": 0.0, "sent_ms": None}
        return self.executions == () and self.model_copy(update=measures) == other.model_copy(update=measures)


class Contender(BaseModel):
    """A message on `agent.<id>:events`: a worker waits because another worker holds the lease of its agent."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["contender"] = "contender"
    #: Id of its journal.
    boot: Name
    #: Random id of its run.
    run: Name
    #: Name of its host.
    hostname: Name
    #: Name of the host of the worker that holds the lease.
    holder: Name


class RememberedLife(BaseModel):
    """A message on `agent.<id>:events`: the record in Redis is of an earlier life than the agent remembers.

    The agent uses no connection until an orchestrator records a later life. An orchestrator that was restarted since
    does not know of it, and the heartbeat of a worker that was restarted as well names no life.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["life"] = "life"
    #: The signed `LifeRecord` that the agent remembers.
    record: Annotated[str, Field(max_length=16 * 1024)]


class Started(BaseModel):
    """A message on `agent.<id>:events`: a command runs. A command that ends at once has only its receipt."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["started"] = "started"
    #: Id of the execution.
    id: Identifier
    #: Start of the command by the agent's clock, in milliseconds since the epoch.
    started_ms: Milliseconds
