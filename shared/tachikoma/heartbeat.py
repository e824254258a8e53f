"""What an agent says of itself: its registration, its lease, and how its host is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["LEASE_SECONDS", "Heartbeat", "Started"]

#: How long an agent counts as online after its last heartbeat.
LEASE_SECONDS = 15
#: Between heartbeats.
HEARTBEAT_SECONDS = 5


class Heartbeat(BaseModel):
    """Value of `agent.<id>:info`, and message on `agent.<id>:events`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["heartbeat"] = "heartbeat"
    #: Names one run of the agent's worker; claims carry it.
    boot: str
    version: str
    hostname: str
    labels: Annotated[dict[str, str], Field(max_length=64)] = Field(default_factory=dict)
    running: int
    slots: int
    load: float
    memory_used: float
    disk_used: float
    warnings: tuple[str, ...] = ()


class Started(BaseModel):
    """Message on `agent.<id>:events`: a command runs. Those that end at once are only told by their receipt."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["started"] = "started"
    id: str
    started_ms: int
