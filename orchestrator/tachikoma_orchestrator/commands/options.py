"""Options that several commands share. None means not given: the environment variable or the default counts then."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Identity", "LogLevel", "PolicyPath", "ReadyFd", "RedisUrl", "Schedules"]

RedisUrl = Annotated[
    str | None, typer.Option(help="redis://, rediss://, unix:///path or rediss+sentinel://host,host/NAME")
]
Identity = Annotated[
    str | None,
    typer.Option(help="X.509-SVID of this process: a folder, or unix:///path of the SPIFFE Workload API."),
]
PolicyPath = Annotated[Path | None, typer.Option("--policy", help="Policy file or folder.")]
Schedules = Annotated[
    str | None, typer.Option(help="File or folder of schedules, or module:app of a Celery application.")
]
LogLevel = Annotated[str | None, typer.Option(help="debug, info, warning or error.")]
#: Descriptor on which readiness is reported to the process that started this one.
ReadyFd = Annotated[int | None, typer.Option(hidden=True)]
