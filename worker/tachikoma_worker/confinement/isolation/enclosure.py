"""The isolation of one command, as the request to the spawner and the receipt contain it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tachikoma.vocabulary.isolation import Isolation, TmpScope
from tachikoma.vocabulary.results import IsolationReport

__all__ = ["HOST_FILES", "OPEN", "Enclosure"]

#: The part of a receipt that says that the host is read-only for a command of root.
HOST_FILES = "host files"

#: `enum confine_flag` of protocol.h.
_MASKS, _READ_ONLY, _SCOPED, _PASSWD, _CGROUP_FILES = 1, 2, 4, 8, 16


@dataclass(frozen=True, slots=True)
class Enclosure:
    """The isolation of one command."""

    level: Isolation = Isolation.SHARED
    #: Whether the command has a mount namespace, with the masks below.
    masked: bool = False
    #: Whether the files of cgroups are read-only.
    cgroup_files: bool = False
    #: Whether all files but the temporary ones are read-only, only harmless devices exist, and /run is empty; for root.
    read_only: bool = False
    #: Whether Landlock keeps it from abstract sockets and signals of processes outside.
    scoped: bool = False
    #: Paths that are covered.
    masks: tuple[str, ...] = ()
    #: Whose temporary folders it has.
    tmp: TmpScope = TmpScope.HOST
    #: Folder of the requester's temporary folders; empty unless `tmp` is REQUESTER.
    tmp_folder: str = ""
    #: Bytes and inodes of temporary folders that are made.
    tmp_bytes: int = 0
    tmp_inodes: int = 0
    #: File in place of /etc/passwd; empty for none.
    passwd: str = ""
    #: Whether policy lets a command of root reach the host.
    host_access: bool = False
    #: Parts that this host cannot enforce, for people.
    missing: tuple[str, ...] = ()

    @property
    def flags(self) -> int:
        """The flags of the spawner's request."""
        return (
            _MASKS * self.masked | _READ_ONLY * self.read_only | _SCOPED * self.scoped | _PASSWD * bool(self.passwd)
            | _CGROUP_FILES * self.cgroup_files
        )  # fmt: skip

    @property
    def strings(self) -> list[str]:
        """The paths at the end of the spawner's request."""
        return [*self.masks, *filter(None, (self.tmp_folder, self.passwd))]

    def report(self) -> IsolationReport | None:
        """Return what the receipt says; None if only the user separates the command from others."""
        if not self.masked and not self.missing:
            return None
        return IsolationReport(
            level=self.level, tmp=self.tmp, host_access=self.host_access, parts=tuple(self._parts()),
            missing=self.missing,
        )  # fmt: skip

    def _parts(self) -> Iterator[str]:
        if self.masked:
            yield "agent files"
        if self.cgroup_files:
            yield "cgroup files"
        if self.read_only:
            yield from (HOST_FILES, "devices", "sockets in /run")
        if self.level is not Isolation.SHARED:
            yield from ("processes", "mounts", "System V IPC", "keyrings")
        if self.passwd:
            yield "user"
        # A process without a number in the PID namespace can get no signal.
        if self.scoped or self.level is not Isolation.SHARED:
            yield "signals"
        # Abstract sockets belong to a network namespace.
        if self.scoped or self.level is Isolation.SEALED:
            yield "abstract sockets"
        if self.level is Isolation.SEALED:
            yield from ("network", "system calls")


#: The isolation of a command that is not isolated.
OPEN = Enclosure()
