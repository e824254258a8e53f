"""Checks of this host: its files, its disks, and the units of systemd."""

from __future__ import annotations

import os
import resource
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tachikoma.diagnosis.findings import Finding

__all__ = ["check_folder", "check_open_files", "check_secret", "check_units"]

#: Free bytes and share of a disk below which it may be full soon.
FREE_BYTES, FREE_SHARE = 1 << 30, 0.05
#: Folder that exists while systemd is the init system (sd_booted(3)).
SYSTEMD = Path("/run/systemd/system")
#: Longest time that systemctl may take.
SYSTEMCTL_SECONDS = 10.0


def check_secret(path: Path) -> Iterator[Finding]:
    """Check that a file with a secret can be read by this user, and by no other but root."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        yield Finding(
            where=str(path), what=f"cannot be read: {error.strerror}", remedy="create it, or name another file"
        )
        return
    if not os.access(path, os.R_OK):
        yield Finding(where=str(path), what="this user cannot read it", remedy="run: chown to the user of the part")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield Finding(
            where=str(path),
            what=f"other users may read or write it (mode {stat.S_IMODE(mode):o}), and it is a secret",
            remedy=f"run: chmod 600 {path}",
        )


def check_folder(path: Path, what: str) -> Iterator[Finding]:
    """Check that a part can write to a folder, and that its disk has room.

    Args:
        path: the folder; a missing one is created by the part, so its nearest existing parent is checked.
        what: what the part writes there.
    """
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield Finding(
            where=str(path), what=f"{what} cannot be written to {existing}", remedy="run: chown to the user of the part"
        )
        return
    disk = shutil.disk_usage(existing)
    if disk.free < min(FREE_BYTES, disk.total * FREE_SHARE) or os.statvfs(existing).f_favail == 0:
        yield Finding(
            where=str(path),
            what=f"its disk has {disk.free >> 20} MiB free of {disk.total >> 20} MiB; {what} will soon fail",
            remedy="free some space",
        )


def check_open_files(setting: str, connections: int, reserved: int) -> Iterator[Finding]:
    """Check that this process may open as many files as a server needs.

    Args:
        setting: the setting of the number of connections.
        connections: that number.
        reserved: open files of the server besides connections.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < connections + reserved:
        yield Finding(
            where=setting,
            what=f"a limit of {limit} open files is too low for {connections} connections",
            remedy=f"set LimitNOFILE={connections + reserved} or more in the unit, or fewer connections",
        )


def check_units(*units: str, companions: tuple[str, ...] = ()) -> Iterator[Finding]:
    """Check that units run, if systemd is the init system and knows them.

    Args:
        units: the units of the part.
        companions: units that the part needs on some hosts only, so they are to run if they are enabled.
    """
    systemctl = shutil.which("systemctl")
    if systemctl is None or not SYSTEMD.is_dir():
        return
    for unit in (*units, *companions):
        try:
            done = subprocess.run(
                [systemctl, "show", "-p", "LoadState,ActiveState,UnitFileState", unit],
                capture_output=True, text=True, timeout=SYSTEMCTL_SECONDS, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            yield Finding(where=unit, what=f"systemctl gave no answer: {error}", remedy="run: systemctl status")
            return
        shown = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        if shown.get("LoadState") != "loaded":
            continue
        wanted = unit in units or shown.get("UnitFileState") == "enabled"
        if shown["ActiveState"] == "failed":
            yield Finding(where=unit, what="the unit has failed", remedy=f"run: journalctl -u {unit}")
        elif shown["ActiveState"] == "inactive" and wanted:
            yield Finding(
                where=unit,
                what="the unit does not run",
                remedy=f"run: systemctl enable --now {unit}",
            )
