"""The way of input to an agent: sealed, numbered, bounded, and sent again in a new epoch after any doubt.

The channel retains input until the agent has accepted it. A lost connection to Redis, a worker that restarted, or an
answer that does not come begins a new epoch: keys are agreed on again, and everything that the agent has not accepted
is sent again. The agent drops what it has by the offsets.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import structlog
from redis.exceptions import RedisError

from tachikoma.config.retry import Backoff
from tachikoma.errors import InvalidRequest
from tachikoma.identity.signing import InvalidSignature
from tachikoma.identity.svid import SvidSource
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.sessions.frames import (
    INPUT_CREDIT_BYTES,
    MAX_DATA_BYTES,
    Accepted,
    Acknowledge,
    Close,
    Data,
    Detach,
    End,
    Frame,
    Resize,
    Signal,
    SignalName,
    decode,
    encode,
)
from tachikoma.sessions.messages import Answer, Entry, Offer, Sealed, decode_notice, encode_entry
from tachikoma.sessions.sealing import InvalidFrame
from tachikoma.vocabulary.requests import WindowSize
from tachikoma.vocabulary.results import InputAccepted
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.agents.revocations import Revocations
from tachikoma_orchestrator.executions.transitions import DISPATCHED
from tachikoma_orchestrator.sessions.attachment import ExecutionEnded
from tachikoma_orchestrator.sessions.handshake import Epoch, Handshake, SessionAddress, verified_answer
from tachikoma_orchestrator.store.subscriber import Subscriber

__all__ = ["InputChannel"]

log = structlog.get_logger(__name__)

#: Longest wait for the answer to an offer.
ANSWER_SECONDS = 5.0
#: The first and the longest delay between two offers.
OFFER_BACKOFF = (0.05, 2.0)
#: Seconds after which the agent is asked for keys although its notice did not come.
POLL_SECONDS = 2.0
#: Seconds between two frames at most, by which the agent knows that a caller is attached.
KEEPALIVE_SECONDS = 10.0
#: Lifetime of the input in Redis after the last offer; longer than any execution can run.
INPUT_SECONDS = 8 * 24 * 3600


class InputChannel:
    """The input of one attachment."""

    _handshake: Handshake | None = None
    #: The current epoch; None while keys are agreed on.
    _epoch: Epoch | None = None
    #: Number of input bytes so far; None until the agent says where the input of an older session continues.
    _written: int | None = None
    _accepted = InputAccepted()
    _end = False
    _closing = False
    _size: WindowSize | None = None
    #: Number of output bytes that the caller has written.
    _output = 0

    def __init__(
        self,
        redis: Redis,
        subscriber: Subscriber,
        identity: SvidSource,
        revocations: Revocations,
        address: SessionAddress,
        *,
        next_epoch: Callable[[], Awaitable[int]],
        state: Callable[[], Awaitable[tuple[ExecState, str]]],
        on_accepted: Callable[[InputAccepted], None],
    ) -> None:
        """Prepare a channel.

        Args:
            redis: the connections.
            subscriber: delivers the agent's answers.
            identity: the orchestrator's own, which signs offers.
            revocations: agents that were revoked.
            address: the session.
            next_epoch: counts a new epoch of this attachment.
            state: returns the state of the execution, and the SHA-256 of its order; empty before there is one.
            on_accepted: called with each progress of input.
        """
        self._redis, self._subscriber = redis, subscriber
        self._identity = identity
        self._revocations = revocations
        self._address = address
        self._next_epoch, self._state, self._on_accepted = next_epoch, state, on_accepted
        self._input = keys.input(address.agent, address.exec_id)
        self._notices = keys.session(address.agent, address.exec_id)
        #: Keeps frames in the order of their numbers.
        self._sending = asyncio.Lock()
        self._wanted = asyncio.Event()
        self._answered = asyncio.Event()
        #: Set while there is an epoch.
        self._ready = asyncio.Event()
        self._credit = asyncio.Event()
        #: Input that the agent has not accepted, with its offsets.
        self._retained: deque[tuple[int, bytes]] = deque()

    # --- what the caller does -----------------------------------------------------------------------------------------

    async def write(self, data: bytes, offset: int | None) -> tuple[int, bytes]:
        """Send input; wait while too much of it is not accepted.

        Args:
            data: the bytes. Those that were written before are left out.
            offset: number of input bytes before them; None if they follow the last ones.

        Returns:
            The number of input bytes before those that were sent, and these.

        Raises:
            InvalidRequest: bytes before the offset are missing, or input has ended.
        """
        written = await self._position()
        begin = written if offset is None else offset
        if begin > written:
            raise InvalidRequest(f"input continues at byte {written}, not at {begin}")
        if self._end and begin + len(data) > written:
            raise InvalidRequest("input comes after its end")
        data = data[written - begin :]
        for start in range(0, len(data), MAX_DATA_BYTES):
            part = data[start : start + MAX_DATA_BYTES]
            while written + len(part) - self._accepted.offset > INPUT_CREDIT_BYTES:
                self._credit.clear()
                await self._credit.wait()
            self._retained.append((written, part))
            written += len(part)
            self._written = written
            await self._send(Data(written - len(part), part))
        return written - len(data), data

    async def end(self) -> None:
        """Send the end of input. Safe to repeat."""
        written = await self._position()
        self._end = True
        await self._send(End(written))

    async def resize(self, size: WindowSize) -> None:
        """Send the size of the caller's window."""
        self._size = size
        await self._send(Resize(size))

    async def signal(self, name: SignalName) -> None:
        """Send a signal once; wait until the command runs."""
        await self._ready.wait()
        while not await self._send(Signal(name)):
            await self._ready.wait()

    async def written(self, output: int) -> None:
        """Send the caller's progress in writing output: number of bytes of both streams."""
        if output > self._output:
            self._output = output
            await self._send(Acknowledge(output))

    async def detach(self) -> None:
        """Report to the agent that the caller leaves, also while unaccepted input is sent again."""
        await self._send(Detach(), early=True)

    async def close(self) -> bool:
        """Ask the agent to end the session; return False if the command does not run."""
        if self._epoch is None:
            return False
        # Also in the next epoch, if keys are being agreed on at this moment.
        self._closing = True
        await self._send(Close())
        return True

    # --- the epochs ---------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[None]:
        """Receive the agent's answers while the block runs. Raises RedisError."""
        async with self._subscriber.listen(self._notices, self._on_notice, self.renew):
            yield

    async def run(self) -> None:
        """Agree on keys whenever it is necessary, inside `listen`; runs until it is cancelled or the execution ends.

        Raises:
            FailedPrecondition: another caller has attached.
            NotFound: the execution is gone.
        """
        with suppress(ExecutionEnded):
            while True:
                await self._until_wanted()
                await self._establish()

    async def _until_wanted(self) -> None:
        """Wait until a new epoch is necessary. Meanwhile, show the agent regularly that the caller is attached."""
        while not self._wanted.is_set():
            try:
                seconds = KEEPALIVE_SECONDS if self._ready.is_set() else POLL_SECONDS
                async with asyncio.timeout(seconds):
                    await self._wanted.wait()
            except TimeoutError:
                if self._ready.is_set():
                    await self._send(Acknowledge(self._output))
                elif await self._is_in(ExecState.STARTED):
                    # Its notice was missed.
                    return

    async def _is_in(self, *states: ExecState) -> bool:
        """Return True if the execution has an order and is in one of these states; note the order."""
        try:
            state, order_sha256 = await self._state()
        except (RedisError, OSError) as error:
            log.warning("session.redis_unavailable", id=self._address.exec_id, error=str(error))
            return False
        self._address = replace(self._address, order_sha256=order_sha256)
        return bool(order_sha256) and state in states

    async def _establish(self) -> None:
        """Make offers until the agent answers one, then send unaccepted input again."""
        delays = Backoff(*OFFER_BACKOFF)
        while True:
            self._forget()
            self._wanted.clear()
            if not await self._is_in(*DISPATCHED):
                return
            try:
                await self._offer()
                async with asyncio.timeout(ANSWER_SECONDS):
                    await self._answered.wait()
                if await self._resume():
                    return
            except (RedisError, OSError, TimeoutError) as error:
                log.info("session.no_answer", id=self._address.exec_id, error=str(error) or type(error).__name__)
            await delays.wait()

    async def _offer(self) -> None:
        epoch = await self._next_epoch()
        self._answered.clear()
        self._handshake = Handshake(self._identity.current(), self._address, epoch)
        await self._add(Offer(self._handshake.offer))
        await self._redis.expire(self._input, INPUT_SECONDS)

    async def _resume(self) -> bool:
        """Send again everything that the agent may lack in the new epoch; return False if the epoch broke meanwhile."""
        async with self._sending:
            epoch = self._epoch
            if epoch is None:
                return False
            if self._written is None:
                self._written = epoch.accepted
            self._progress(InputAccepted(offset=epoch.accepted, ended=epoch.ended))
            frames: list[Frame] = [Resize(self._size)] if self._size else []
            frames += [Acknowledge(self._output)]
            frames += [Data(offset, data) for offset, data in self._retained]
            if self._end:
                frames.append(End(self._written))
            if self._closing:
                frames.append(Close())
            for frame in frames:
                await self._add(Sealed(epoch.sealer.seal(encode(frame))))
            self._ready.set()
        return self._epoch is epoch

    async def _position(self) -> int:
        """Return the number of input bytes so far. In a resumed session, wait until the agent has reported it."""
        while self._written is None:
            await self._ready.wait()
        return self._written

    def _forget(self) -> None:
        self._epoch = None
        self._ready.clear()

    def renew(self) -> None:
        """Begin a new epoch: the command runs, or messages may have been missed."""
        self._forget()
        self._wanted.set()

    # --- frames -------------------------------------------------------------------------------------------------------

    async def _send(self, frame: Frame, *, early: bool = False) -> bool:
        """Send a frame in the current epoch; return False without one. Then `_resume` sends what must not be lost.

        Args:
            frame: the frame.
            early: send it also before `_resume` has sent all.
        """
        async with self._sending:
            epoch = self._epoch
            if epoch is None or not (early or self._ready.is_set()):
                return False
            try:
                await self._add(Sealed(epoch.sealer.seal(encode(frame))))
            except (RedisError, OSError) as error:
                # The frame may or may not be in Redis.
                log.warning("session.redis_unavailable", id=self._address.exec_id, error=str(error))
                self.renew()
        return True

    async def _add(self, entry: Entry) -> None:
        await self._redis.xadd(self._input, {**encode_entry(entry)})

    def _on_notice(self, raw: bytes) -> None:
        try:
            notice = decode_notice(raw)
            if isinstance(notice, Answer):
                self._on_answer(notice.token)
            elif isinstance(notice, Sealed):
                self._on_sealed(notice.raw)
            else:
                self.renew()
        except (ValueError, InvalidSignature) as error:
            log.warning("session.notice_refused", id=self._address.exec_id, reason=str(error))

    def _on_answer(self, token: str) -> None:
        svid = self._identity.current()
        answer = verified_answer(token, svid.bundle, svid.spiffe_id.trust_domain, self._address, self._revocations)
        handshake = self._handshake
        if handshake is None or self._epoch is not None:
            return
        epoch = handshake.accept(answer, token)
        if epoch is not None:
            self._epoch = epoch
            self._answered.set()

    def _on_sealed(self, raw: bytes) -> None:
        if self._epoch is None:
            return
        try:
            frame = decode(self._epoch.opener.open(raw))
        except InvalidFrame:
            # Of another epoch, or repeated: the next one reports the progress as well.
            return
        if isinstance(frame, Accepted):
            self._progress(
                InputAccepted(offset=frame.offset, echo=frame.echo, canonical=frame.canonical, ended=frame.ended)
            )

    def _progress(self, accepted: InputAccepted) -> None:
        """Record the agent's progress, and drop the input that it has accepted."""
        while self._retained and self._retained[0][0] + len(self._retained[0][1]) <= accepted.offset:
            self._retained.popleft()
        self._accepted = accepted
        if accepted.ended:
            # Nothing more is taken, so nothing is waited for.
            self._retained.clear()
            self._accepted = accepted.model_copy(update={"offset": max(accepted.offset, self._written or 0)})
        self._credit.set()
        self._on_accepted(accepted)
