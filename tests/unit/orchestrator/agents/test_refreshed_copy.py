"""A copy is refreshed in the background, and kept while Redis is unavailable."""

from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from tachikoma_orchestrator.agents import refreshed_copy
from tachikoma_orchestrator.agents.refreshed_copy import RefreshedCopy


class Steps(RefreshedCopy):
    """A copy that notes its readings, and meets errors in a given order."""

    subject = "steps"

    def __init__(self, *errors: Exception | None) -> None:
        self.errors = list(errors)
        self.done: list[str] = []

    async def refresh(self) -> None:
        self.done.append("refresh")
        error = self.errors.pop(0) if self.errors else asyncio.CancelledError()
        if error is not None:
            raise error

    async def update(self) -> None:
        await super().update()
        self.done.append("update")


@pytest.mark.parametrize("error", [RedisConnectionError("refused"), OSError("reset"), TimeoutError()])
async def test_redis_that_is_unavailable_does_not_end_the_refreshing(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refreshed_copy, "REFRESH_SECONDS", 0.0)
    copy = Steps(None, error, None)
    with pytest.raises(asyncio.CancelledError):
        await copy.run()
    assert copy.done == ["refresh", "update", "refresh", "refresh", "update", "refresh"]


async def test_a_defect_ends_the_refreshing() -> None:
    with pytest.raises(ValueError, match="a defect"):
        await Steps(ValueError("a defect")).run()
