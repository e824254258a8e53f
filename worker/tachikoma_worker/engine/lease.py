"""The agent's lease: its registration in Redis, renewed on a thread of its own, so that no work can delay it."""

from __future__ import annotations

import asyncio
import platform
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

import structlog
from redis.exceptions import RedisError

from tachikoma.config.retry import Backoff
from tachikoma.errors import Unavailable
from tachikoma.identity.open import open_identity
from tachikoma.redis import keys
from tachikoma.redis.access import RedisAccess, connect
from tachikoma.redis.commands import Redis
from tachikoma.streams.heartbeat import HEARTBEAT_SECONDS, LEASE_SECONDS, Heartbeat
from tachikoma_worker.settings import WorkerSettings

__all__ = ["Lease", "read_lease"]

log = structlog.get_logger(__name__)

#: First and longest delay between attempts while Redis is unavailable. Constant: a late lease makes the agent offline.
RETRY_SECONDS = (0.25, 0.25)
#: Longest time that releasing the lease may take.
RELEASE_SECONDS = 1.0


class Lease:
    """The agent's proof that it is alive, with its heartbeat as the value."""

    def __init__(self, settings: WorkerSettings, access: RedisAccess, describe: Callable[[], Heartbeat]) -> None:
        """Prepare a lease; `describe` returns the heartbeat and is called on the lease's thread."""
        self._agent = settings.agent_id
        self._access = access
        self._describe = describe
        self._loop: asyncio.AbstractEventLoop | None = None
        self._holding: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False
        #: Resolves when the thread has ended; fails with the error that ended it.
        self._ended: Future[None] = Future()

    def start(self) -> None:
        """Acquire the lease and renew it in the background."""
        self._loop = asyncio.new_event_loop()
        self._holding = self._loop.create_task(self._hold())
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._thread.start()

    async def watch(self) -> None:
        """Wait until the lease is released.

        Raises:
            Exception: the lease cannot be renewed any more. An agent that is not visible must not run commands.
        """
        await asyncio.wrap_future(self._ended)

    def stop(self) -> None:
        """Release the lease, so that the agent counts as offline at once. Bounded, and safe to repeat."""
        if self._loop is None or self._holding is None or self._thread is None:
            return
        # Both: Python 3.11 may lose the cancellation (gh-86296), and the flag interrupts no command to Redis.
        self._stopped = True
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._holding.cancel)
        self._thread.join(2 * RELEASE_SECONDS)

    def _run(self) -> None:
        assert self._loop is not None
        assert self._holding is not None
        error: Exception | None = None
        try:
            with suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._holding)
        except Exception as failed:
            error = failed
        finally:
            self._loop.close()
        # Not if the caller of `watch` was cancelled, which cancels the future.
        if self._ended.set_running_or_notify_cancel():
            if error is None:
                self._ended.set_result(None)
            else:
                self._ended.set_exception(error)

    async def _hold(self) -> None:
        redis = connect(self._access, name=f"agent-{self._agent}-lease", max_connections=2)
        try:
            await self._renew_until_stopped(redis)
        finally:
            with suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(RELEASE_SECONDS):
                    await redis.expire(keys.info(self._agent), 0)
                    await redis.aclose()

    async def _renew_until_stopped(self, redis: Redis) -> None:
        backoff = Backoff(*RETRY_SECONDS)
        available = True
        while not self._stopped:
            error = await self._renew(redis)
            if error is None:
                if not available:
                    log.info("redis.available")
                backoff.reset()
            elif available:
                log.warning("redis.unavailable", error=str(error))
            available = error is None
            if not self._stopped:
                await asyncio.sleep(HEARTBEAT_SECONDS if available else backoff.advance())

    async def _renew(self, redis: Redis) -> Exception | None:
        """Set the lease and publish it, and return the error if Redis is unavailable."""
        raw = self._describe().model_dump_json()
        try:
            async with redis.pipeline(transaction=False) as pipe:
                pipe.set(keys.info(self._agent), raw, ex=LEASE_SECONDS)
                pipe.publish(keys.events(self._agent), raw)
                await pipe.execute()
        except (RedisError, OSError) as error:
            return error
        return None


async def read_lease(settings: WorkerSettings) -> Heartbeat:
    """Return the last heartbeat of the agent's worker on this host.

    Raises:
        Unavailable: the agent has no lease, another host holds it, or Redis is unavailable.
        ConfigurationError: the identity or the access to Redis cannot be used.
    """
    identity = open_identity(settings.identity)
    redis = connect(settings.redis(identity), name=f"agent-{settings.agent_id}-health", max_connections=1)
    try:
        raw = await redis.get(keys.info(settings.agent_id))
    except (RedisError, OSError) as error:
        raise Unavailable(f"Redis cannot be asked for agent {settings.agent_id}: {error}") from None
    finally:
        await redis.aclose()
        identity.close()
    if raw is None:
        raise Unavailable(f"agent {settings.agent_id} is offline")
    found = Heartbeat.model_validate_json(raw)
    if found.hostname != platform.node():
        raise Unavailable(f"agent {settings.agent_id} is online, but on the host {found.hostname}")
    return found
