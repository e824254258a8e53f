"""A request to the spawner to start a command."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tachikoma.vocabulary.requests import WindowSize
from tachikoma_worker.confinement.isolation.enclosure import OPEN, Enclosure
from tachikoma_worker.confinement.protocol import NAME_BYTES, NO_WINDOW, InputMode

__all__ = ["SpawnRequest"]

#: `struct spawn` of protocol.h. Its first field is its size, so that it can grow at its end.
_SPAWN = struct.Struct(f"=IIIIIIIIIIQHHHH{NAME_BYTES}sIIIIQQQ")
#: Flags: the cgroup is a directory of cgroup v2; all steps are done but the execution of the program.
_UNIFIED, _PROBE = 1, 2


@dataclass(frozen=True, slots=True)
class SpawnRequest:
    """A command to start. The descriptors stay open and belong to the caller."""

    #: The execution's id.
    name: str
    uid: int
    gid: int
    groups: Sequence[int]
    #: Bits of the capabilities that stay in the bounding set of uid 0.
    capabilities: int
    #: The directory that policy names, and the path from there to the working directory ("" for the directory itself).
    work_dir_root: str
    work_dir: str
    #: Path and open descriptor of the checked file.
    executable: str
    executable_fd: int
    argv: Sequence[str]
    environment: Mapping[str, str]
    #: Where standard input comes from; `stdin_fd` is set for FILE only.
    input: InputMode = InputMode.NULL
    stdin_fd: int | None = None
    #: First size of the terminal; only for TERMINAL.
    terminal: WindowSize = NO_WINDOW
    #: Directories of the cgroups to join; the first one is killed as a whole.
    cgroup_fds: Sequence[int] = ()
    #: Whether they are one directory of cgroup v2.
    unified: bool = False
    umask: int = 0o022
    #: Its isolation.
    enclosure: Enclosure = OPEN
    #: Files that each of its processes may have open; 0 for the spawner's default.
    open_files: int = 0
    #: Whether it is only tried: the program is not executed, and the exit code is 0.
    probe: bool = False

    def encode(self) -> tuple[bytes, list[int]]:
        """Return the body of the message and the descriptors that travel with it."""
        strings = [self.work_dir_root, self.work_dir, self.executable, *self.argv]
        strings += [f"{name}={value}" for name, value in self.environment.items()]
        size, enclosure = self.terminal, self.enclosure
        strings += enclosure.strings
        head = _SPAWN.pack(
            _SPAWN.size, _UNIFIED * self.unified | _PROBE * self.probe, self.uid, self.gid, self.umask,
            len(self.groups), len(self.argv), len(self.environment), len(self.cgroup_fds), self.input,
            self.capabilities, size.rows, size.columns, size.x_pixels, size.y_pixels, self.name.encode(),
            enclosure.level.rank, enclosure.flags, enclosure.tmp.rank, len(enclosure.masks),
            enclosure.tmp_bytes, enclosure.tmp_inodes, self.open_files,
        )  # fmt: skip
        groups = struct.pack(f"={len(self.groups)}I", *self.groups)
        body = b"".join((head, groups, *(os.fsencode(text) + b"\0" for text in strings)))
        descriptors = [self.executable_fd]
        if self.stdin_fd is not None:
            descriptors.append(self.stdin_fd)
        return body, [*descriptors, *self.cgroup_fds]
