"""The orchestrator's one subscription to Redis pub/sub: patterns for all agents, and channels as followers come and go.

Pub/sub forgets what is published while the connection is down. After each reconnect everybody who listens is told so
(`on_gap`) and reads what it missed from where it is kept: streams, results, ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import structlog
from redis.exceptions import RedisError

from tachikoma.redis_access import Redis

__all__ = ["Subscriber"]

log = structlog.get_logger(__name__)

#: After so long without a message the connection is tried with a ping, and given so long to answer.
IDLE_SECONDS = 10.0
#: Between attempts to connect.
RETRY_SECONDS = 0.25
#: Pattern messages handled at once; beyond that nothing more is read, and Redis buffers or disconnects.
MAX_HANDLED = 128
#: Longest wait for Redis to confirm a subscription.
CONFIRM_SECONDS = 10.0

PatternHandler = Callable[[str, bytes], Awaitable[None]]
ChannelHandler = Callable[[bytes], None]
GapHandler = Callable[[], None]


class _Channel:
    __slots__ = ("confirmed", "handlers")

    def __init__(self) -> None:
        self.handlers: dict[object, tuple[ChannelHandler, GapHandler]] = {}
        self.confirmed = asyncio.Event()


class Subscriber:
    """Delivers messages: those of channels in the order they come, those of patterns side by side."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._patterns: dict[str, PatternHandler] = {}
        self._gap_handlers: list[Callable[[], Awaitable[None]]] = []
        self._channels: dict[str, _Channel] = {}
        self._pubsub: Any = None
        self._handling = asyncio.Semaphore(MAX_HANDLED)
        self._tasks: set[asyncio.Task[None]] = set()
        self.connected = asyncio.Event()

    def on_pattern(self, pattern: str, handler: PatternHandler) -> None:
        """Call a handler with channel and message of each match. To be used before `run`."""
        self._patterns[pattern] = handler

    def on_gap(self, handler: Callable[[], Awaitable[None]]) -> None:
        """Call a handler after each (re)connect, the first included."""
        self._gap_handlers.append(handler)

    @asynccontextmanager
    async def listen(self, channel: str, handler: ChannelHandler, gap: GapHandler) -> AsyncIterator[None]:
        """Give a handler the messages of a channel, from when the block is entered.

        Raises:
            RedisError: the subscription was not confirmed in time.
        """
        entry = self._channels.get(channel)
        token = object()
        if entry is None:
            entry = self._channels[channel] = _Channel()
            entry.handlers[token] = (handler, gap)
            if self._pubsub is not None and self.connected.is_set():
                # When it fails the connection is broken, and the reconnect subscribes again.
                with suppress(RedisError, OSError):
                    await self._pubsub.subscribe(channel)
        else:
            entry.handlers[token] = (handler, gap)
        try:
            try:
                await asyncio.wait_for(entry.confirmed.wait(), CONFIRM_SECONDS)
            except TimeoutError:
                raise RedisError(f"no confirmation of the subscription to {channel}") from None
            yield
        finally:
            entry.handlers.pop(token, None)
            if not entry.handlers and self._channels.get(channel) is entry:
                del self._channels[channel]
                if self._pubsub is not None and self.connected.is_set():
                    with suppress(RedisError, OSError):
                        await self._pubsub.unsubscribe(channel)

    async def run(self) -> None:
        """Receive for ever, through any number of reconnects."""
        failing = False
        while True:
            try:
                await self._session()
            except (RedisError, OSError) as error:
                if not failing:
                    log.warning("redis.away", error=str(error))
                failing = True
            else:
                failing = False
            self.connected.clear()
            for entry in self._channels.values():
                entry.confirmed.clear()
            await asyncio.sleep(RETRY_SECONDS)

    async def _session(self) -> None:
        pubsub = self._redis.pubsub()
        try:
            await pubsub.psubscribe(*self._patterns)
            # From here on whoever listens anew subscribes by itself; those from before are subscribed here.
            before = list(self._channels)
            self._pubsub = pubsub
            self.connected.set()
            if before:
                await pubsub.subscribe(*before)
            log.info("redis.subscribed")
            for gap_handler in self._gap_handlers:
                await gap_handler()
            for entry in list(self._channels.values()):
                for _, gap in list(entry.handlers.values()):
                    gap()
            pinged = False
            while True:
                message = await pubsub.get_message(timeout=IDLE_SECONDS)
                if message is not None:
                    pinged = False
                    await self._deliver(message)
                elif pinged:
                    raise RedisError("the subscription's connection does not answer")
                else:
                    pinged = True
                    await pubsub.ping()
        finally:
            self._pubsub = None
            with suppress(RedisError, OSError):
                await pubsub.aclose()

    async def _handle(self, message: dict[str, Any]) -> None:
        try:
            await self._patterns[message["pattern"].decode()](message["channel"].decode(), message["data"])
        except (RedisError, OSError) as error:
            # What it would have changed is found again: by the reaper, or after the reconnect.
            log.warning("message.not_handled", channel=message["channel"].decode(), error=str(error))
        except Exception:
            log.exception("message.failed", channel=message["channel"].decode())
        finally:
            self._handling.release()

    async def _deliver(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "message":
            entry = self._channels.get(message["channel"].decode())
            if entry is not None:
                for handler, _ in list(entry.handlers.values()):
                    handler(message["data"])
        elif kind == "pmessage":
            await self._handling.acquire()
            task = asyncio.create_task(self._handle(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif kind == "subscribe":
            entry = self._channels.get(message["channel"].decode())
            if entry is not None:
                entry.confirmed.set()
            elif self._pubsub is not None:
                # Its last listener left before Redis answered.
                await self._pubsub.unsubscribe(message["channel"])
