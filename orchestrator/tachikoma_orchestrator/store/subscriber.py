"""The orchestrator's one subscription to Redis pub/sub: patterns for all agents, and channels as followers come and go.

Pub/sub forgets what is published while the connection is down. After each reconnect everybody who listens is told so
(`on_gap`) and reads what it missed from where it is kept: streams, results, ledger.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog
from redis.exceptions import RedisError

from tachikoma.config.tasks import cancel_all
from tachikoma.redis.commands import Connection, Redis

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
    __slots__ = ("confirmed", "handlers", "interrupted")

    def __init__(self) -> None:
        self.handlers: dict[object, tuple[ChannelHandler, GapHandler]] = {}
        self.confirmed = asyncio.Event()
        #: Whether it was confirmed on an earlier connection, so that a confirmation follows a gap.
        self.interrupted = False


class Subscriber:
    """Delivers messages: those of channels in the order they come, those of patterns side by side."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._patterns: dict[str, PatternHandler] = {}
        self._gap_handlers: list[Callable[[], Awaitable[None]]] = []
        self._channels: dict[str, _Channel] = {}
        #: Commands for the connection there is; none while there is none.
        self._outbox: asyncio.Queue[tuple[str, ...]] | None = None
        #: How many subscriptions Redis has yet to answer, for each channel.
        self._unconfirmed: Counter[str] = Counter()
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
            self._send("SUBSCRIBE", channel)
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
                self._send("UNSUBSCRIBE", channel)

    def _send(self, *command: str) -> None:
        """Send over the connection there is; a connection to come begins with what is listened to then."""
        if self._outbox is None:
            return
        if command[0] == "SUBSCRIBE":
            self._unconfirmed[command[1]] += 1
        self._outbox.put_nowait(command)

    async def run(self) -> None:
        """Receive for ever, through any number of reconnects."""
        failing = False
        while True:
            try:
                await self._session()
            except (RedisError, OSError) as error:
                if not failing or self.connected.is_set():
                    log.warning("redis.away", error=str(error))
                failing = True
            self.connected.clear()
            await asyncio.sleep(RETRY_SECONDS)

    async def _session(self) -> None:
        """Receive over one connection until it breaks.

        Not with the PubSub of redis-py, which connects again by itself: what was missed meanwhile nobody would be told,
        and two tasks that use it, one to receive and one to subscribe, break each other when the connection does.
        """
        connection = self._redis.connection_pool.make_connection()
        tasks: list[asyncio.Task[None]] = []
        try:
            await connection.connect()
            await connection.send_command("PSUBSCRIBE", *self._patterns)
            self._outbox = asyncio.Queue()
            self._unconfirmed.clear()
            for channel in self._channels:
                self._send("SUBSCRIBE", channel)
            tasks += (
                asyncio.create_task(self._send_commands(connection, self._outbox)),
                asyncio.create_task(self._receive(connection)),
                asyncio.create_task(self._tell_gap()),
            )
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            self._outbox = None
            for entry in self._channels.values():
                entry.interrupted = entry.interrupted or entry.confirmed.is_set()
                entry.confirmed.clear()
            try:
                await cancel_all(tasks)
            finally:
                await connection.disconnect()

    async def _send_commands(self, connection: Connection, outbox: asyncio.Queue[tuple[str, ...]]) -> None:
        while self._outbox is outbox:
            await connection.send_command(*await outbox.get())

    async def _receive(self, connection: Connection) -> None:
        missing = set(self._patterns)
        pinged = False
        while True:
            # [type, (pattern,) channel, data]; and [pong, data].
            message = await connection.read_response(timeout=IDLE_SECONDS, disconnect_on_error=False)
            if message is None:
                if pinged:
                    raise RedisError("the subscription's connection does not answer")
                pinged = True
                self._send("PING")
                continue
            pinged = False
            match message:
                case [b"message", channel, data]:
                    entry = self._channels.get(channel.decode(errors="replace"))
                    if entry is not None:
                        for handler, _ in list(entry.handlers.values()):
                            handler(data)
                case [b"pmessage", pattern, channel, data]:
                    await self._handling.acquire()
                    task = asyncio.create_task(self._handle(pattern.decode(), channel.decode(errors="replace"), data))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                case [b"subscribe", channel, _]:
                    self._confirm(channel.decode())
                case [b"psubscribe", pattern, _]:
                    missing.discard(pattern.decode())
                    if not missing:
                        log.info("redis.subscribed")
                        self.connected.set()

    def _confirm(self, channel: str) -> None:
        # Listeners may have left and come again meanwhile; what counts is Redis' answer to the last of them.
        self._unconfirmed[channel] -= 1
        if self._unconfirmed[channel] > 0:
            return
        del self._unconfirmed[channel]
        entry = self._channels.get(channel)
        if entry is None:
            return
        entry.confirmed.set()
        if entry.interrupted:
            entry.interrupted = False
            for _, gap in list(entry.handlers.values()):
                gap()

    async def _tell_gap(self) -> None:
        await self.connected.wait()
        for handler in self._gap_handlers:
            await handler()

    async def _handle(self, pattern: str, channel: str, data: bytes) -> None:
        try:
            await self._patterns[pattern](channel, data)
        except (RedisError, OSError) as error:
            # What it would have changed is found again: by the reaper, or after the reconnect.
            log.warning("message.not_handled", channel=channel, error=str(error))
        except Exception:
            log.exception("message.failed", channel=channel)
        finally:
            self._handling.release()
