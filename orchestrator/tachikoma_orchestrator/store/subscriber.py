"""A subscription of the orchestrator to Redis pub/sub: fixed patterns for all agents, or channels of followers.

Each process has two, each with its own connection: reports and notices, and live output.

Pub/sub does not keep messages for a subscriber that is not connected. After each reconnect every handler is called for
the gap and reads what it missed from where it is stored: streams, results, the ledger.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog
from redis.exceptions import RedisError, ResponseError

from tachikoma.config.retry import Backoff
from tachikoma.config.tasks import Supervisor, supervised
from tachikoma.redis.commands import Connection, Redis

__all__ = ["Subscriber"]

log = structlog.get_logger(__name__)

#: Seconds without a message after which the connection is tested with a ping, and the longest wait for its answer.
IDLE_SECONDS = 5.0
ANSWER_SECONDS = 5.0
#: Delay between attempts to connect. It does not grow, because every waiting caller depends on this connection.
RETRY_SECONDS = 0.25
#: Largest number of pattern messages handled at the same time. At this limit no more are read, and Redis buffers or
#: disconnects.
MAX_HANDLED = 128
#: Longest wait for Redis to confirm a subscription.
CONFIRM_SECONDS = 10.0

PatternHandler = Callable[[str, bytes], Awaitable[None]]
ChannelHandler = Callable[[bytes], None]
GapHandler = Callable[[], None]


class _Channel:
    """A channel with its listeners."""

    __slots__ = ("confirmed", "handlers", "interrupted")

    def __init__(self) -> None:
        self.handlers: dict[object, tuple[ChannelHandler, GapHandler]] = {}
        #: Set while Redis has confirmed the subscription on the current connection.
        self.confirmed = asyncio.Event()
        #: True if the subscription was confirmed on an earlier connection, so the next confirmation follows a gap.
        self.interrupted = False

    def interrupt(self) -> None:
        """Record that the connection is lost."""
        self.interrupted = self.interrupted or self.confirmed.is_set()
        self.confirmed.clear()

    def confirm(self) -> None:
        """Record that Redis confirmed the subscription, and call the listeners if messages may have been missed."""
        self.confirmed.set()
        if self.interrupted:
            self.interrupted = False
            for _, gap in list(self.handlers.values()):
                gap()


class Subscriber:
    """Delivers the messages of a channel in their order, and those of patterns concurrently."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._patterns: dict[str, PatternHandler] = {}
        self._gap_handlers: list[Callable[[], Awaitable[None]]] = []
        self._channels: dict[str, _Channel] = {}
        #: Commands for the current connection; None without a connection.
        self._outbox: asyncio.Queue[tuple[str, ...]] | None = None
        #: Number of subscriptions that Redis has not confirmed yet, by channel.
        self._unconfirmed: Counter[str] = Counter()
        self._handling = asyncio.Semaphore(MAX_HANDLED)
        #: Set while all patterns are subscribed.
        self.connected = asyncio.Event()

    @property
    def channels(self) -> int:
        """Number of single channels that are listened to."""
        return len(self._channels)

    def on_pattern(self, pattern: str, handler: PatternHandler) -> None:
        """Call a handler with channel and message of each match. Use it before `run`."""
        self._patterns[pattern] = handler

    def on_gap(self, handler: Callable[[], Awaitable[None]]) -> None:
        """Call a handler after each connect and reconnect."""
        self._gap_handlers.append(handler)

    @asynccontextmanager
    async def listen(self, channel: str, handler: ChannelHandler, gap: GapHandler) -> AsyncIterator[None]:
        """Give a handler every message of a channel, from the start of the block.

        Args:
            channel: the channel.
            handler: called with each message.
            gap: called after a reconnect, when messages may have been missed.

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
                async with asyncio.timeout(CONFIRM_SECONDS):
                    await entry.confirmed.wait()
            except TimeoutError:
                raise RedisError(f"no confirmation of the subscription to {channel}") from None
            yield
        finally:
            entry.handlers.pop(token, None)
            if not entry.handlers and self._channels.get(channel) is entry:
                del self._channels[channel]
                self._send("UNSUBSCRIBE", channel)

    def _send(self, *command: str) -> None:
        """Send a command on the current connection. Without one, the next connection subscribes to all channels."""
        if self._outbox is None:
            return
        if command[0] == "SUBSCRIBE":
            self._unconfirmed[command[1]] += 1
        self._outbox.put_nowait(command)

    async def run(self) -> None:
        """Receive until cancelled, and reconnect whenever the connection breaks.

        Raises:
            Exception: an error other than of Redis or the network; it ends the process with its reason.
        """
        retry = Backoff(RETRY_SECONDS, RETRY_SECONDS)
        first = True
        async with supervised() as handlers:
            while True:
                try:
                    await self._session(handlers)
                except (RedisError, OSError) as error:
                    if first or self.connected.is_set():
                        log.warning("redis.unavailable", error=str(error))
                    first = False
                self.connected.clear()
                await retry.wait()

    async def _session(self, handlers: Supervisor) -> None:
        """Receive over one connection until it breaks.

        redis-py's PubSub is not used, because it reconnects by itself and hides the gap. Its receiving and subscribing
        tasks also disturb each other when the connection breaks.

        Raises:
            RedisError, OSError: the connection broke.
        """
        connection = self._redis.connection_pool.make_connection()
        try:
            await connection.connect()
            if self._patterns:
                await connection.send_command("PSUBSCRIBE", *self._patterns)
            else:
                self._report_connected()
            outbox: asyncio.Queue[tuple[str, ...]] = asyncio.Queue()
            self._outbox = outbox
            self._unconfirmed.clear()
            for channel in self._channels:
                self._send("SUBSCRIBE", channel)
            async with supervised(self._send_commands(connection, outbox), self._report_gap()):
                await self._receive(connection, handlers)
        finally:
            self._outbox = None
            for entry in self._channels.values():
                entry.interrupt()
            await connection.disconnect()

    def _report_connected(self) -> None:
        log.info("redis.subscribed")
        self.connected.set()

    @staticmethod
    async def _send_commands(connection: Connection, outbox: asyncio.Queue[tuple[str, ...]]) -> None:
        task = asyncio.current_task()
        assert task is not None
        # A cancellation during a send may be lost (`tachikoma.config.tasks.cancel_all`), but it is counted.
        while not task.cancelling():
            await connection.send_command(*await outbox.get())

    async def _receive(self, connection: Connection, handlers: Supervisor) -> None:
        """Receive messages until the connection breaks or does not answer a ping."""
        missing = set(self._patterns)
        pinged = False
        while True:
            patience = ANSWER_SECONDS if pinged else IDLE_SECONDS
            message = await connection.read_response(timeout=patience, disconnect_on_error=False)
            if message is None:
                if pinged:
                    raise RedisError("the subscription's connection does not answer")
                pinged = True
                self._send("PING")
                continue
            pinged = False
            match message:
                case [b"psubscribe", pattern, _]:
                    missing.discard(pattern.decode())
                    if not missing:
                        self._report_connected()
                case _:
                    await self._dispatch(message, handlers)

    async def _dispatch(self, message: list[bytes], handlers: Supervisor) -> None:
        """Pass a message on: [type, channel, data] or [type, pattern, channel, data]. Others need no action."""
        match message:
            case [b"message", channel, data]:
                entry = self._channels.get(channel.decode(errors="replace"))
                if entry is not None:
                    for handler, _ in list(entry.handlers.values()):
                        handler(data)
            case [b"pmessage", pattern, channel, data]:
                await self._handling.acquire()
                handlers.start(self._handle(pattern.decode(), channel.decode(errors="replace"), data))
            case [b"subscribe", channel, _]:
                self._confirm(channel.decode())

    def _confirm(self, channel: str) -> None:
        # The listeners may have left and returned meanwhile; only the answer to the last subscription counts.
        self._unconfirmed[channel] -= 1
        if self._unconfirmed[channel] > 0:
            return
        del self._unconfirmed[channel]
        entry = self._channels.get(channel)
        if entry is not None:
            entry.confirm()

    async def _report_gap(self) -> None:
        await self.connected.wait()
        for handler in self._gap_handlers:
            try:
                await handler()
            except ResponseError as error:
                # Redis responds, but a value is not of the type that it must have. A reconnect would not help.
                log.error("gap.not_handled", error=str(error)[:300])
            except (RedisError, OSError):
                raise
            except Exception:
                # Logged with its trace and reported, but not raised: one value must not end the process.
                log.exception("gap.failed")

    async def _handle(self, pattern: str, channel: str, data: bytes) -> None:
        try:
            await self._patterns[pattern](channel, data)
        except (RedisError, OSError) as error:
            # The reaper, or the next reconnect, finds again what the message would have changed.
            log.warning("message.not_handled", channel=channel, error=str(error))
        except Exception:
            # Logged with its trace and reported, but not raised: one message of an agent must not end the process.
            log.exception("message.failed", channel=channel)
        finally:
            self._handling.release()
