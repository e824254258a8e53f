"""The agent's lease: its registration in Redis, renewed on a thread of its own, so that no work can delay it.

The worker that holds the lease keeps it until it ends or its lease expires. Another worker with the same identity
waits meanwhile and takes no orders. Only a restart of the same worker takes the lease over at once: it has the same
journal, on the same host, and the lock of the data folder shows that the earlier worker has ended.
"""

from __future__ import annotations

import asyncio
import platform
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

import structlog
from pydantic import ValidationError
from redis.exceptions import RedisError, ResponseError, WatchError

from tachikoma.config.retry import Backoff
from tachikoma.errors import Unavailable
from tachikoma.identity.open import open_identity
from tachikoma.redis import keys
from tachikoma.redis.access import RedisAccess, connect, wrong_type
from tachikoma.redis.commands import Redis
from tachikoma.streams.heartbeat import HEARTBEAT_SECONDS, LEASE_SECONDS, REST_SECONDS, Contender, Heartbeat
from tachikoma_worker.settings import WorkerSettings

__all__ = ["POLL_SECONDS", "Lease", "LeaseLost", "read_lease"]

log = structlog.get_logger(__name__)

#: First and longest delay between attempts while Redis is unavailable. Constant: a late lease makes the agent offline.
RETRY_SECONDS = (0.25, 0.25)
#: First and longest delay between attempts while another worker holds the lease.
CONTEND_SECONDS = (0.5, 5.0)
#: Heartbeats after a change that are sent although they say nothing new. The orchestrator compares clocks by two.
FURTHER_HEARTBEATS = 1
#: Change of the difference between the clocks of this host that counts as a change of its time, in seconds.
CLOCK_SECONDS = 1.0
#: Between two checks of other threads whether the lease is held.
POLL_SECONDS = 0.1
#: Longest time that releasing the lease may take.
RELEASE_SECONDS = 1.0


class LeaseLost(Exception):
    """Another worker took the lease of this agent while this worker could not renew it."""


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
        #: Set when a heartbeat is requested before it is due.
        self._requested = asyncio.Event()
        #: Set once this worker holds the lease.
        self.held = threading.Event()
        #: The other worker that holds the lease, as the log names it; None while there is none.
        self._other: Heartbeat | None = None
        #: The last heartbeat that was stored; None before the first.
        self._last: Heartbeat | None = None
        #: The same as it is stored in Redis.
        self._stored = b""
        #: Time of the last heartbeat that was sent, by the monotonic clock; and by how much the clock of this host was
        #: ahead of that one then, both in seconds.
        self._sent_at, self._clock = 0.0, 0.0
        #: Heartbeats to send before only the lease is renewed.
        self._further = FURTHER_HEARTBEATS
        #: Resolves when the thread has ended; fails with the error that ended it.
        self._ended: Future[None] = Future()

    def start(self) -> None:
        """Acquire the lease and renew it in the background."""
        self._loop = asyncio.new_event_loop()
        self._holding = self._loop.create_task(self._hold())
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._thread.start()

    async def wait_until_held(self) -> None:
        """Wait until this worker holds the lease."""
        while not self.held.is_set():  # noqa: ASYNC110 (another thread sets it)
            await asyncio.sleep(POLL_SECONDS)

    async def watch(self) -> None:
        """Wait until the lease is released.

        Raises:
            LeaseLost: another worker has it.
            Exception: it cannot be renewed any more. An agent that is not visible must not run commands.
        """
        await asyncio.wrap_future(self._ended)

    def renew_soon(self) -> None:
        """Send a heartbeat at once, because something in it has changed."""
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._requested.set)

    def stop(self) -> None:
        """Release the lease, so that the agent counts as offline at once. Bounded, and safe to repeat."""
        if self._loop is None or self._holding is None or self._thread is None:
            return
        # A heartbeat that is under way is completed: one that Redis gets after the release would be a lease again.
        self._stopped = True
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._requested.set)
        self._thread.join(RELEASE_SECONDS)
        # Redis does not answer.
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
                    await self._release(redis)
                    await redis.aclose()

    async def _renew_until_stopped(self, redis: Redis) -> None:
        """Renew the lease, or wait for it, until stopped. Raises LeaseLost."""
        unavailable, contended = Backoff(*RETRY_SECONDS), Backoff(*CONTEND_SECONDS)
        available = True
        while not self._stopped:
            # Outside: an error of this host, such as a missing data folder, is not an error of Redis.
            beat = self._describe()
            try:
                renewed = await self._renew(redis, beat)
            except WatchError:
                # Another worker wrote it at the same moment.
                continue
            except (RedisError, OSError) as error:
                if available:
                    log.warning("redis.unavailable", error=str(error))
                available, delay = False, unavailable.advance()
            else:
                if not available:
                    log.info("redis.available")
                available, delay = True, HEARTBEAT_SECONDS if renewed else contended.advance()
                unavailable.reset()
            if not self._stopped:
                await self._pause(delay)

    async def _pause(self, seconds: float) -> None:
        """Wait until the next heartbeat is due, or requested."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._requested.wait()
        self._requested.clear()

    async def _renew(self, redis: Redis, beat: Heartbeat) -> bool:
        """Set the lease and publish it, unless another worker holds it.

        Returns:
            False if another worker holds it.

        Raises:
            LeaseLost: another worker holds it, and this one held it before.
            WatchError: the lease was changed meanwhile.
            RedisError, OSError: Redis is unavailable.
        """
        key = keys.info(self._agent)
        if self._rests(beat) and await redis.getex(key, ex=LEASE_SECONDS) == self._stored:
            return True
        async with redis.pipeline(transaction=True) as pipe:
            # Nothing is set if the lease changes between here and the end of the transaction.
            await pipe.watch(key)
            holder = await _read(redis, key)
            if holder is not None and not self._is_own(holder, beat):
                await self._contend(redis, holder, beat)
                return False
            raw = beat.model_dump_json()
            pipe.multi()
            pipe.set(key, raw, ex=LEASE_SECONDS)
            pipe.publish(keys.events(self._agent), raw)
            await pipe.execute()
        self._note_sent(beat, raw)
        self.held.set()
        return True

    def _rests(self, beat: Heartbeat) -> bool:
        """Return True if a heartbeat would say nothing new, so that renewing the lease is enough.

        One command renews it, which other workers cannot come between: it returns whose lease it was. The lease of
        another worker is renewed with that at most once, and this one then learns of it.
        """
        last = self._last
        if last is None or not self.held.is_set() or time.monotonic() - self._sent_at >= REST_SECONDS:
            return False
        if not beat.says_the_same(last) or abs(time.time() - time.monotonic() - self._clock) > CLOCK_SECONDS:
            self._further = FURTHER_HEARTBEATS
            return False
        if self._further > 0:
            self._further -= 1
            return False
        return True

    def _note_sent(self, beat: Heartbeat, raw: str) -> None:
        """Remember a heartbeat that was stored and published."""
        self._other, self._last, self._stored = None, beat, raw.encode()
        self._sent_at = time.monotonic()
        self._clock = time.time() - self._sent_at

    def _is_own(self, holder: Heartbeat, own: Heartbeat) -> bool:
        """Return whether the lease is that of this worker, or of an earlier run of it."""
        if self.held.is_set():
            return (holder.boot, holder.run) == (own.boot, own.run)
        # The same journal on another host is a copy.
        return (holder.boot, holder.hostname) == (own.boot, own.hostname)

    async def _contend(self, redis: Redis, holder: Heartbeat, own: Heartbeat) -> None:
        """Report that another worker holds the lease. Raises LeaseLost if this one held it before."""
        if self._other is None or self._other.run != holder.run:
            log.warning(
                "agent.held_elsewhere", agent=self._agent, host=holder.hostname, journal=holder.boot,
                effect="this worker takes no orders until the lease of the other one ends",
            )  # fmt: skip
        self._other = holder
        notice = Contender(boot=own.boot, run=own.run, hostname=own.hostname, holder=holder.hostname)
        await redis.publish(keys.events(self._agent), notice.model_dump_json())
        if self.held.is_set():
            raise LeaseLost(f"a worker on {holder.hostname} became agent {self._agent} while this one was silent")

    async def _release(self, redis: Redis) -> None:
        """Delete the lease if this worker holds it."""
        key, own = keys.info(self._agent), self._last
        if own is None:
            return
        with suppress(WatchError):
            async with redis.pipeline(transaction=True) as pipe:
                await pipe.watch(key)
                holder = await _read(redis, key)
                if holder is not None and self._is_own(holder, own):
                    pipe.multi()
                    pipe.expire(key, 0)
                    await pipe.execute()


async def _read(redis: Redis, key: str) -> Heartbeat | None:
    """Return the heartbeat in a lease; None if it is missing or unreadable."""
    try:
        raw = await redis.get(key)
        return None if raw is None else Heartbeat.model_validate_json(raw)
    except ValidationError:
        return None
    except ResponseError as error:
        if not wrong_type(error):
            raise
        return None


async def read_lease(settings: WorkerSettings) -> Heartbeat:
    """Return the last heartbeat of the agent's worker on this host.

    Raises:
        Unavailable: the agent has no readable lease, another host holds it, or Redis is unavailable.
        ConfigurationError: the identity or the access to Redis cannot be used.
    """
    identity = open_identity(settings.identity)
    redis = connect(settings.redis(identity), name=f"agent-{settings.agent_id}-health", max_connections=1)
    try:
        raw = await redis.get(keys.info(settings.agent_id))
    except (RedisError, OSError) as error:
        raise Unavailable(
            f"Redis cannot be asked for agent {settings.agent_id}: {error}", metadata={"dependency": "redis"}
        ) from None
    finally:
        await redis.aclose()
        identity.close()
    if raw is None:
        raise Unavailable(f"agent {settings.agent_id} is offline")
    try:
        found = Heartbeat.model_validate_json(raw)
    except ValidationError:
        raise Unavailable(f"the lease of agent {settings.agent_id} is unreadable, so no worker holds it") from None
    if found.hostname != platform.node():
        raise Unavailable(f"agent {settings.agent_id} is online, but on the host {found.hostname}")
    return found
