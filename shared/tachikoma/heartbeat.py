"""What an agent says of itself: its registration, its lease, and how its host is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from tachikoma.fields import Identifier, Milliseconds

__all__ = ["LEASE_SECONDS", "Heartbeat", "Labels", "Started"]

#: How long an agent counts as online after its last heartbeat.
LEASE_SECONDS = 15
#: Between heartbeats.
HEARTBEAT_SECONDS = 5


#: Bounds, since an agent may be hostile and all agents are told in one answer.
Name = Annotated[str, Field(max_length=255)]
Labels = Annotated[
    dict[Annotated[str, Field(max_length=128)], Annotated[str, Field(max_length=128)]], Field(max_length=64)
]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Measure = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Heartbeat(BaseModel):
    """Value of `agent.<id>:info`, and message on `agent.<id>:events`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["heartbeat"] = "heartbeat"
    #: Names the agent's journal; claims carry it. Another one does not know what was claimed before.
    boot: Name
    #: Names this run of its worker.
    run: Name
    version: Name
    hostname: Name
    labels: Labels = Field(default_factory=dict)
    running: Count
    slots: Count
    load: Measure
    memory_used: Measure
    disk_used: Measure
    warnings: Annotated[tuple[Annotated[str, Field(max_length=512)], ...], Field(max_length=32)] = ()


class Started(BaseModel):
    """Message on `agent.<id>:events`: a command runs. Those that end at once are only told by their receipt."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["started"] = "started"
    id: Identifier
    #: By the agent's clock.
    started_ms: Milliseconds
