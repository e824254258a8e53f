"""Readiness reports of a process to its supervisor.

A supervisor passes the write end of a pipe as `--ready-fd`. The process writes one line of JSON when it is ready, and
closes the pipe. A pipe that is closed without a line means that the process ended before it was ready: the end of a
process closes its files before its supervisor can wait for it.
"""

from __future__ import annotations

import json
import os

__all__ = ["report_ready"]


def report_ready(descriptor: int | None, address: str = "") -> None:
    """Report that this process is ready.

    Args:
        descriptor: the write end of the supervisor's pipe, which is closed; None if there is no supervisor.
        address: the address at which the process listens; empty if it does not listen.
    """
    if descriptor is not None:
        with os.fdopen(descriptor, "w") as pipe:
            pipe.write(json.dumps({"address": address}) + "\n")
