"""What policy grants a request: the part of an order that an agent enforces."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from tachikoma.vocabulary.limits import OutputLimit, ResourceLimits

__all__ = ["Digest", "Grant", "GrantedExecutable"]

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class GrantedExecutable(BaseModel):
    """A file that policy lets be executed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    #: Whether policy names it without wildcards; only then it may be one that changes its user.
    named: bool = False
    #: What it must contain, if policy pins it: one of these SHA-256.
    sha256: tuple[Digest, ...] = ()


class Grant(BaseModel):
    """What policy granted, as far as the request itself does not say it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: What the program may be, in search order; the first that exists is executed.
    executables: Annotated[tuple[GrantedExecutable, ...], Field(min_length=1)]
    #: Whether the program may be one that runs whatever it is told to.
    interpreters: bool = False
    #: Patterns of commands that are denied, for the file behind a symbolic link.
    denied: tuple[str, ...] = ()
    #: The directory named by policy beneath which the working directory lies; empty for the user's home.
    work_dir_root: str = ""
    limits: ResourceLimits = ResourceLimits()
    output: OutputLimit = OutputLimit()
    #: Bits of the capabilities that root keeps.
    capabilities: Annotated[int, Field(ge=0, lt=2**64)] = 0
    #: Seconds between TERM and KILL; None for the agent's own.
    kill_grace: Annotated[float, Field(ge=0, le=600)] | None = None
