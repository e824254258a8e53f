"""Processes of the machine, as tests look for them."""

from __future__ import annotations

import psutil

__all__ = ["processes_named"]


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
