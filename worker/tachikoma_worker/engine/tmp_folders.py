"""The removal of requesters' temporary folders that were not used for long."""

from __future__ import annotations

import asyncio

import structlog

from tachikoma_worker.confinement.protocol import SpawnerGone, SpawnFailed
from tachikoma_worker.execution.context import Context

__all__ = ["drop_unused_tmp"]

log = structlog.get_logger(__name__)

#: Delay between two searches.
SEARCH_SECONDS = 60.0


async def drop_unused_tmp(context: Context) -> None:
    """Remove unused temporary folders regularly. The folders of a running command stay until it ends."""
    while True:
        for path in context.enclosures.unused():
            try:
                await context.spawner.drop_tmp(path)
            except (SpawnFailed, SpawnerGone) as error:
                log.warning("tmp.not_removed", path=path, error=str(error))
        await asyncio.sleep(SEARCH_SECONDS)
