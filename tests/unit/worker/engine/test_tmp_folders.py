"""Unused temporary folders are removed, whichever of them cannot be."""

from __future__ import annotations

import asyncio
import errno
from types import SimpleNamespace
from typing import Any

import pytest

from tachikoma_worker.confinement.protocol import SpawnFailed, Step
from tachikoma_worker.engine.tmp_folders import drop_unused_tmp


async def test_a_folder_that_cannot_be_removed_keeps_none_of_the_others() -> None:
    dropped: list[str] = []
    all_seen = asyncio.Event()

    async def drop(path: str) -> None:
        if path == "/t/1":
            raise SpawnFailed(Step.TMP, errno.EBUSY)
        dropped.append(path)
        all_seen.set()

    context: Any = SimpleNamespace(
        enclosures=SimpleNamespace(unused=lambda: ["/t/1", "/t/2"]), spawner=SimpleNamespace(drop_tmp=drop)
    )
    task = asyncio.ensure_future(drop_unused_tmp(context))
    await asyncio.wait_for(all_seen.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert dropped == ["/t/2"]
