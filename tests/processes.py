"""Processes and cgroups of the machine, as tests look for them."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

__all__ = ["cgroups_named", "processes_named"]


def cgroups_named(name: str, top: str = "/sys/fs/cgroup") -> list[Path]:
    """Every cgroup of a name. Walked, not globbed: cgroups of other tests come and go meanwhile."""
    return [Path(path) for path, _, _ in os.walk(top) if Path(path).name == name]


def processes_named(mark: str) -> list[psutil.Process]:
    """Every process of the machine with a mark in its command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and any(mark in word for word in process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found
