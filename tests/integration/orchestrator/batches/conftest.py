"""Fixtures of the tests of batches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from batches import BatchStand
from tachikoma.redis.commands import Redis

Make = Callable[..., Awaitable[BatchStand]]


@pytest.fixture
def make(redis: Redis, tmp_path: Path) -> Make:
    """Return a function that makes a stand with a number of agents."""

    def make(agents: int, **values: Any) -> Awaitable[BatchStand]:
        return BatchStand.make(redis, tmp_path, agents, **values)

    return make
