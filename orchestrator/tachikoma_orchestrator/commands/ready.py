"""Readiness reports to the process that started this one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tachikoma.config.readiness import report_ready

__all__ = ["announce"]


def announce(descriptor: int) -> Callable[[str], None]:
    """Return a function that reports an address through an inherited pipe, as one line of JSON, and closes the pipe."""

    return partial(report_ready, descriptor)
