"""The grant of policy for one request: the part of a work order that the agent enforces."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from tachikoma.vocabulary.isolation import Isolation, TmpScope
from tachikoma.vocabulary.limits import OutputLimit, ResourceLimits
from tachikoma.vocabulary.model import OMITTED_IF_NONE

__all__ = ["Digest", "Grant", "GrantedExecutable"]

#: A SHA-256 in hexadecimal.
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class GrantedExecutable(BaseModel):
    """A file that policy allows to be executed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Absolute path of the file.
    path: str
    #: True if policy names the file without wildcards. Only such a file may be setuid or setgid.
    named: bool = False
    #: SHA-256 that the file may have, one of them must match; empty if policy does not pin its content.
    sha256: tuple[Digest, ...] = ()


class Grant(BaseModel):
    """The permissions and limits that policy grants one request, beyond the fields of the request itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Files that may be executed, in search order; the agent executes the first that exists.
    executables: Annotated[tuple[GrantedExecutable, ...], Field(min_length=1)]
    #: True if the program may be an interpreter or launcher, which can run any other program.
    interpreters: bool = False
    #: Patterns of denied commands; the agent checks them again after it has resolved symbolic links.
    denied: tuple[str, ...] = ()
    #: Directory that policy names, which contains the working directory; empty for the user's home.
    work_dir_root: str = ""
    #: Resource limits of the command.
    limits: ResourceLimits = ResourceLimits()
    #: Limit of the retained output.
    output: OutputLimit = OutputLimit()
    #: Bit mask of the capabilities that a command keeps if it runs as root.
    capabilities: Annotated[int, Field(ge=0, lt=2**64)] = 0
    #: Seconds between TERM and KILL; None for the agent's own setting.
    kill_grace: Annotated[float, Field(ge=0, le=600)] | None = None
    #: Seconds without input after which an interactive command is hung up; None for no limit.
    idle_seconds: Annotated[Annotated[float, Field(gt=0)] | None, OMITTED_IF_NONE] = None
    #: Seconds without an attached caller after which an interactive command is hung up; None for no limit.
    detached_seconds: Annotated[Annotated[float, Field(gt=0)] | None, OMITTED_IF_NONE] = None
    #: Weakest isolation of the command; None for that of the agent's settings.
    isolation: Annotated[Isolation | None, OMITTED_IF_NONE] = None
    #: Whose temporary folders it has where it is isolated; None for those of its requester.
    tmp: Annotated[TmpScope | None, OMITTED_IF_NONE] = None
