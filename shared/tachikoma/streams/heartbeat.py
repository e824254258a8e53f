"""What an agent says of itself: its registration, its lease, and how its host is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from tachikoma.vocabulary.types import Identifier, Milliseconds

__all__ = ["LEASE_SECONDS", "MAX_ROOTS", "Heartbeat", "Labels", "Started", "Trust"]

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


#: Roots of its bundle that an agent tells of.
MAX_ROOTS = 32
KeyDigest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Trust(BaseModel):
    """An agent's identity and bundle, for `tachikoma identity check`; its word only, nothing is decided by it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    spiffe_id: Annotated[str, Field(max_length=2048)]
    #: When the certificate ends.
    expires_ms: Milliseconds
    #: `spiffe.key_digest` of the root that vouches for it, and of the roots in its bundle.
    root: KeyDigest | Literal[""] = ""
    bundle: Annotated[tuple[KeyDigest, ...], Field(max_length=MAX_ROOTS)] = ()


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
    trust: Trust | None = None


class Started(BaseModel):
    """Message on `agent.<id>:events`: a command runs. Those that end at once are only told by their receipt."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["started"] = "started"
    id: Identifier
    #: By the agent's clock.
    started_ms: Milliseconds
