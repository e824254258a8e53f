"""Readiness reports to the process that started this one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

__all__ = ["announce"]


def announce(descriptor: int) -> Callable[[str], None]:
    """Return a function that reports an address through an inherited pipe, as one line of JSON, and closes the pipe."""

    def report(address: str) -> None:
        with os.fdopen(descriptor, "w") as pipe:
            pipe.write(json.dumps({"address": address}) + "\n")

    return report
