"""`tachikoma beat`."""

from __future__ import annotations

import logging
import os
from typing import Annotated
from urllib.parse import urlsplit

import structlog
import typer

from tachikoma.config import error_reporting, logs
from tachikoma.config.readiness import report_ready
from tachikoma.config.settings import read_settings
from tachikoma.identity.open import open_identity
from tachikoma.redis.access import RedisAccess, RedisSettings
from tachikoma.redis.users import BEAT
from tachikoma.vocabulary.types import IdentityPlace
from tachikoma_orchestrator.commands.options import Identity, LogLevel, ReadyFd, RedisUrl, Schedules
from tachikoma_orchestrator.schedules.beat import Beat
from tachikoma_orchestrator.schedules.sources import open_schedules

__all__ = ["BeatSettings", "beat"]

log = structlog.get_logger(__name__)

beat = typer.Typer(invoke_without_command=True, help="Run Celery beat for the schedules; several may run at once.")


class BeatSettings(RedisSettings):
    """The settings of beat."""

    #: Schedules: a file, a folder of them, or `module:app` of a Celery application.
    schedules: str
    #: Folder of an X.509-SVID, or unix:///path of the Workload API: shown to Redis over TLS. Not needed without TLS.
    identity: IdentityPlace | None = None
    #: Lowest severity of log lines that are written: debug, info, warning or error.
    log_level: str = "info"


@beat.callback()
def run(
    schedules: Schedules = None,
    redis_url: RedisUrl = None,
    identity: Identity = None,
    check: Annotated[bool, typer.Option("--check", help="Only check whether the schedules are valid.")] = False,
    log_level: LogLevel = None,
    ready_fd: ReadyFd = None,
) -> None:
    """Run Celery beat for the schedules. Every option is also an environment variable TACHIKOMA_…"""
    if check and redis_url is None:
        redis_url = "unix:///"
    settings = read_settings(
        BeatSettings, "beat", schedules=schedules, redis_url=redis_url, identity=identity, log_level=log_level
    )
    found = open_schedules(settings.schedules)
    if check:
        number = len(found.current.schedules)
        typer.echo(f"{settings.schedules}: {number} {'schedule' if number == 1 else 'schedules'}, all right")
        return
    logs.configure(settings.log_level)
    error_reporting.configure("beat")
    # Celery writes two lines for each hint.
    logging.getLogger("celery.beat").setLevel(logging.WARNING)
    tls = urlsplit(settings.redis_url).scheme.startswith("rediss")
    source = open_identity(settings.identity) if settings.identity or tls else None
    access = RedisAccess.of(settings, identity=source, user=BEAT)

    def ready() -> None:
        log.info("beat.ready", schedules=len(found.current.schedules), pid=os.getpid())
        report_ready(ready_fd)

    try:
        Beat(found, access).run(ready)
    finally:
        if source is not None:
            source.close()
