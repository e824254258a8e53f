"""A session: sealed frames from callers become input, sizes and signals of a running command.

Four tasks share it. One reads frames and acts at once on those that are no input. One feeds input to the command, which
may take it slowly or never. One reports progress. One ends a session that was left alone for too long.
"""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum

import structlog
from redis.exceptions import RedisError

from tachikoma.config.retry import Backoff
from tachikoma.config.tasks import supervised
from tachikoma.identity.signing import InvalidSignature
from tachikoma.identity.spiffe import InvalidIdentity
from tachikoma.sessions.frames import (
    INPUT_CREDIT_BYTES,
    Accepted,
    Acknowledge,
    Close,
    Data,
    Detach,
    End,
    Frame,
    Resize,
    Signal,
)
from tachikoma.sessions.messages import Answer, Notice, Offer, OfferWanted, Sealed
from tachikoma.sessions.sealing import InvalidFrame, epoch_of
from tachikoma_worker.confinement.process import Process
from tachikoma_worker.confinement.protocol import SpawnFailed
from tachikoma_worker.output.records import SessionFacts
from tachikoma_worker.output.window import OutputWindow
from tachikoma_worker.sessions.attachment import AgentParty, Attachment, attach, verified_offer
from tachikoma_worker.sessions.last_use import LastUse
from tachikoma_worker.sessions.mailbox import Mailbox

__all__ = ["Session", "SessionEnd"]

log = structlog.get_logger(__name__)

#: Longest time between two reports to an attached orchestrator. The number of receivers shows whether it still listens.
REPORT_SECONDS = 5.0
#: Accepted bytes of one report while more input waits. The sender may have 4 MiB in flight.
REPORT_BYTES = 512 * 1024
#: Entries of the input after which one report trims them, if nothing else is to be reported.
REPORT_ENTRIES = 64
#: Longest delay between two looks at the clock.
LOOK_SECONDS = 1.0
#: First and longest delay between attempts to report while Redis is unavailable.
RETRY_SECONDS = (0.05, 2.0)


class SessionEnd(StrEnum):
    """The reason for ending a session before its command ends."""

    #: No input for as long as policy allows.
    IDLE = "idle"
    #: No attached caller for as long as policy allows.
    DETACHED = "detached"
    #: The caller closed the session.
    CLOSED = "closed"


class Session:
    """The session of one running command."""

    def __init__(
        self, party: AgentParty, mailbox: Mailbox, process: Process, window: OutputWindow, facts: SessionFacts,
        last_use: LastUse, order_sha256: str, end: Callable[[SessionEnd], None],
    ) -> None:  # fmt: skip
        """Prepare a session.

        Args:
            party: the agent, whose identity signs answers.
            mailbox: the session's names in Redis.
            process: the command.
            window: the limit of output that an attached caller has not acknowledged.
            facts: limits of the session.
            last_use: the times of the session's last input and last detachment.
            order_sha256: SHA-256 of the order.
            end: called when the session is to be ended.
        """
        self._party = party
        self._mailbox = mailbox
        self._process = process
        self._window = window
        self._facts = facts
        self._last_use = last_use
        self._order_sha256 = order_sha256
        self._end = end
        self._epoch = 0
        #: The current attachment; None without keys.
        self._attachment: Attachment | None = None
        #: Input that is still to be fed, its size, and the offset after it.
        self._waiting: deque[Data | End] = deque()
        self._waiting_bytes = 0
        self._following_offset = process.input.offset
        self._more = asyncio.Event()
        #: Set while no input is on its way to the spawner.
        self._idle = asyncio.Event()
        self._idle.set()
        #: Notices that are still to be published, beside the progress.
        self._answer: str | None = None
        self._offer_wanted = True
        self._report_due = asyncio.Event()
        #: The last reported progress, and the number of entries that were read since.
        self._reported = Accepted(0)
        self._unreported = 0

    async def run(self, *, resumed: bool) -> None:
        """Serve callers until cancelled.

        Args:
            resumed: whether an earlier worker served the session.

        Raises:
            SpawnerGone: the spawner no longer answers.
        """
        self._process.input_changed = self._on_progress
        try:
            if resumed:
                self._last_use.resume()
                await self._mailbox.skip()
            async with supervised(self._feed(), self._report(), self._watch_clock()):
                async for entry in self._mailbox.read():
                    self._unreported += 1
                    if isinstance(entry, Offer):
                        await self._on_offer(entry.token)
                    else:
                        await self._on_sealed(entry.raw)
                    if self._unreported >= REPORT_ENTRIES:
                        self._report_due.set()
        finally:
            self._process.input_changed = None

    # --- offers and frames --------------------------------------------------------------------------------------------

    async def _on_offer(self, token: str) -> None:
        """Begin an epoch. An offer that is not genuine, or too late, changes nothing."""
        try:
            offer = verified_offer(
                self._party, token, self._mailbox.exec_id, self._order_sha256, after_epoch=self._epoch
            )
        except (InvalidSignature, InvalidIdentity) as error:
            log.warning("session.offer_refused", id=self._mailbox.exec_id, reason=str(error))
            return
        # The caller continues at the offset of the answer, perhaps with other bytes than the earlier caller had sent.
        await self._stop_feeding()
        try:
            made = attach(self._party, offer, token, self._progress())
        except InvalidFrame as error:
            self._lose(str(error))
            return
        log.info(
            "session.attached", id=self._mailbox.exec_id, caller=made.caller, address=made.client_ip, epoch=made.epoch
        )
        self._epoch, self._attachment, self._answer = made.epoch, made, made.answer
        self._offer_wanted = False
        self._last_use.attach()
        self._window.open()
        self._report_due.set()

    async def _on_sealed(self, raw: bytes) -> None:
        """Act on a frame of the current epoch. Any other frame is ignored: its keys are lost, or never existed."""
        attachment = self._attachment
        try:
            if attachment is None or epoch_of(raw) != attachment.epoch:
                return
            frame = attachment.open(raw)
        except ValueError as error:
            self._lose(str(error))
            return
        self._last_use.attach()
        try:
            await self._on_frame(frame)
        except ValueError as error:
            self._lose(str(error))

    async def _on_frame(self, frame: Frame) -> None:
        """Act on a frame. Raises ValueError if the sender breaks the protocol."""
        match frame:
            case Data() | End():
                self._last_use.note_input()
                self._add(frame)
            case Resize(size):
                await self._process.resize(size)
            case Signal(name):
                self._last_use.note_input()
                await self._process.signal_foreground(signal.Signals[f"SIG{name.value}"])
            case Acknowledge(output):
                self._window.acknowledge(output)
            case Detach():
                log.info("session.detached", id=self._mailbox.exec_id, epoch=self._epoch)
                self._detach()
            case Close():
                log.info("session.closed", id=self._mailbox.exec_id, epoch=self._epoch)
                self._end(SessionEnd.CLOSED)
            case Accepted():
                raise ValueError("only agents send acknowledgements of input")

    def _lose(self, reason: str) -> None:
        """End the epoch because its frames cannot be trusted any more, and ask for another one."""
        log.warning("session.epoch_ended", id=self._mailbox.exec_id, epoch=self._epoch, reason=reason)
        self._detach()
        self._offer_wanted = True
        self._report_due.set()

    def _detach(self) -> None:
        self._attachment, self._answer = None, None
        self._on_absence()

    def _on_absence(self) -> None:
        """Continue without a caller: output is no longer limited by what it has written."""
        self._last_use.detach()
        self._window.open()

    # --- input --------------------------------------------------------------------------------------------------------

    def _add(self, frame: Data | End) -> None:
        """Queue input. Raises ValueError for a gap, and for more input than the sender may have in flight."""
        size = len(frame.data) if isinstance(frame, Data) else 0
        if frame.offset > self._following_offset:
            raise ValueError(f"input continues at {frame.offset} instead of {self._following_offset}")
        if self._waiting_bytes + size > INPUT_CREDIT_BYTES:
            raise ValueError(f"more than {INPUT_CREDIT_BYTES} bytes of input are in flight")
        self._following_offset = max(self._following_offset, frame.offset + size)
        self._waiting.append(frame)
        self._waiting_bytes += size
        self._more.set()

    async def _stop_feeding(self) -> None:
        """Drop the input that was not accepted, which a caller sends again, and wait until no more is accepted."""
        self._waiting.clear()
        self._waiting_bytes = 0
        self._process.stop_feeding()
        await self._idle.wait()
        self._following_offset = self._process.input.offset

    async def _feed(self) -> None:
        """Feed queued input to the command, in order."""
        while True:
            while self._waiting:
                frame = self._waiting.popleft()
                self._idle.clear()
                try:
                    await self._feed_frame(frame)
                finally:
                    self._idle.set()
            # Also after input that was refused.
            self._on_progress()
            self._more.clear()
            await self._more.wait()

    async def _feed_frame(self, frame: Data | End) -> None:
        try:
            if isinstance(frame, Data):
                self._waiting_bytes -= len(frame.data)
                await self._process.feed(frame.offset, frame.data)
            else:
                await self._process.end_input(frame.offset)
        except SpawnFailed as error:
            # The input has ended already, or the command has.
            log.info("session.input_refused", id=self._mailbox.exec_id, offset=frame.offset, reason=str(error))

    def _progress(self) -> Accepted:
        status = self._process.input
        return Accepted(
            status.offset, echo=status.echo, canonical=status.canonical, ended=status.ended or status.broken
        )

    def _on_progress(self) -> None:
        """Report the progress of input, unless more follows at once: each report costs two hand-overs."""
        progress, reported = self._progress(), self._reported
        if progress == reported:
            return
        ahead = progress.offset - reported.offset
        if not self._waiting or ahead >= REPORT_BYTES or replace(progress, offset=0) != replace(reported, offset=0):
            self._report_due.set()

    # --- reports ------------------------------------------------------------------------------------------------------

    async def _report(self) -> None:
        """Publish answers and progress after each change, and regularly, until cancelled."""
        backoff = Backoff(*RETRY_SECONDS)
        while True:
            self._report_due.clear()
            try:
                await self._publish()
            except (RedisError, OSError) as error:
                log.warning("session.waiting", id=self._mailbox.exec_id, error=str(error))
                await backoff.wait()
                continue
            backoff.reset()
            try:
                async with asyncio.timeout(REPORT_SECONDS):
                    await self._report_due.wait()
            except TimeoutError:
                continue

    async def _publish(self) -> None:
        """Publish the state once. Raises RedisError or OSError if Redis is unavailable."""
        attachment, answer, wanted = self._attachment, self._answer, self._offer_wanted
        self._reported, self._unreported = self._progress(), 0
        notices: list[Notice] = []
        if wanted:
            notices.append(OfferWanted())
        if answer is not None:
            notices.append(Answer(answer))
        if attachment is not None:
            notices.append(Sealed(attachment.seal(self._reported)))
        receivers = await self._mailbox.publish(notices)
        if wanted:
            self._offer_wanted = self._offer_wanted and receivers == 0
        if self._answer is answer:
            self._answer = None
        if attachment is not None and attachment is self._attachment:
            if receivers:
                self._last_use.attach()
            else:
                self._on_absence()

    # --- time ---------------------------------------------------------------------------------------------------------

    async def _watch_clock(self) -> None:
        """End the session after too long a time without input or without a caller."""
        idle, detached = self._facts.idle_seconds, self._facts.detached_seconds
        while True:
            self._last_use.save()
            if idle is not None and self._last_use.idle_seconds >= idle:
                self._end(SessionEnd.IDLE)
            if detached is not None and self._last_use.detached_seconds >= detached:
                self._end(SessionEnd.DETACHED)
            await asyncio.sleep(LOOK_SECONDS)
