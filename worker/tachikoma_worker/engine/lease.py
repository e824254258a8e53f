"""The agent's lease: its registration in Redis, renewed by a thread of its own, so that work cannot keep it waiting."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import threading
from collections.abc import Callable
from contextlib import suppress

import structlog
from redis.exceptions import RedisError

from tachikoma.errors import Unavailable
from tachikoma.identity.open import open_identity
from tachikoma.redis import keys
from tachikoma.redis.access import RedisAccess, connect
from tachikoma.streams.heartbeat import HEARTBEAT_SECONDS, LEASE_SECONDS, Heartbeat
from tachikoma_worker.settings import WorkerSettings

__all__ = ["Lease", "read_lease"]

log = structlog.get_logger(__name__)

#: Between attempts while Redis is away.
RETRY_SECONDS = 0.25
#: How long giving it up may take.
GIVE_UP_SECONDS = 1.0


class Lease:
    """Says, as long as it is held, that the agent lives, and how it is."""

    def __init__(self, settings: WorkerSettings, access: RedisAccess, describe: Callable[[], Heartbeat]) -> None:
        """Prepare a lease; `describe` is called in its thread."""
        self._agent = settings.agent_id
        self._access = access
        self._describe = describe
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._holding: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Hold it from here on."""
        self._holding = self._loop.create_task(self._hold())
        self._thread.start()

    def stop(self) -> None:
        """Give it up: nobody is to take this agent for alive any more. Bounded, and safe to repeat."""
        if self._holding is None:
            return
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._holding.cancel)
        self._thread.join(2 * GIVE_UP_SECONDS)

    def _run(self) -> None:
        assert self._holding is not None
        try:
            with suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._holding)
        except Exception:
            # An agent that nobody can see is better none at all.
            log.critical("lease.failed", exc_info=True)
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            self._loop.close()

    async def _hold(self) -> None:
        redis = connect(self._access, name=f"agent-{self._agent}-lease", max_connections=2)
        failing = False
        try:
            while True:
                raw = self._describe().model_dump_json()
                try:
                    async with redis.pipeline(transaction=False) as pipe:
                        pipe.set(keys.info(self._agent), raw, ex=LEASE_SECONDS)
                        pipe.publish(keys.events(self._agent), raw)
                        await pipe.execute()
                except (RedisError, OSError) as error:
                    if not failing:
                        log.warning("redis.away", error=str(error))
                    failing = True
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                if failing:
                    log.info("redis.back")
                failing = False
                await asyncio.sleep(HEARTBEAT_SECONDS)
        finally:
            with suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(GIVE_UP_SECONDS):
                    await redis.expire(keys.info(self._agent), 0)
                    await redis.aclose()


async def read_lease(settings: WorkerSettings) -> Heartbeat:
    """What the agent's worker on this host last said of itself.

    Raises:
        Unavailable: it has no lease, another host has it, or Redis cannot be asked.
        ConfigurationError: identity or Redis are not as they must be.
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
