"""A running command, watched from its start or take-over until it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress

import structlog

from tachikoma.config.tasks import cancel_all, supervised
from tachikoma.streams.frames import STDERR, STDOUT
from tachikoma.vocabulary.clock import micros_since
from tachikoma.vocabulary.limits import ResourceUsage
from tachikoma.vocabulary.states import ExecState
from tachikoma_worker.cgroups.hierarchy import Cgroup
from tachikoma_worker.confinement.process import Process
from tachikoma_worker.confinement.protocol import SpawnerGone, SpawnFailed
from tachikoma_worker.execution.verdict import Stop, judge
from tachikoma_worker.output.output_log import OutputLog
from tachikoma_worker.output.pump import Pump
from tachikoma_worker.output.records import Ending
from tachikoma_worker.output.spool import Spool
from tachikoma_worker.output.window import OutputWindow

__all__ = ["RunningCommand"]

log = structlog.get_logger(__name__)

#: After the command's own end, the time in which its leftovers may close the pipes before they are killed.
DRAIN_SECONDS = 0.2
#: After that KILL, the time in which the pipes must be closed before they are no longer read.
KILLED_DRAIN_SECONDS = 1.0


class RunningCommand:
    """A running command with its cgroup, its spool and its output log."""

    def __init__(
        self,
        exec_id: str,
        process: Process,
        cgroup: Cgroup,
        spool: Spool,
        output: OutputLog,
        stop: asyncio.Future[Stop],
        *,
        window: OutputWindow | None = None,
        session: Callable[[], Coroutine[object, object, None]] | None = None,
    ) -> None:
        """Take over a running command.

        Args:
            exec_id: the execution.
            process: the command.
            cgroup: its cgroup.
            spool: its spool.
            output: its output log.
            stop: resolves when it is to be ended early.
            window: the limit of its output; None for no limit.
            session: serves the callers of an interactive command until it is cancelled; None for another command.
        """
        self._exec_id = exec_id
        self._process = process
        self._cgroup = cgroup
        self._spool = spool
        self._facts = spool.start
        self._output = output
        self._stop = stop
        self._window = window or OutputWindow()
        self._session = session

    async def finish(self) -> Ending:
        """Wait for the command's end, or end it at its timeout or when `stop` resolves.

        Returns:
            The ending, which is stored in the spool already, before the spawner forgets the command.
        """
        facts = self._facts
        try:
            stopped, survivors = await self._attend()
            known = not survivors or self._process.exited.done()
            exited = await self._process.exited if known else None
        except SpawnerGone as gone:
            return Ending(
                state=ExecState.LOST, error=f"its end is not known: {gone}",
                executable=facts.executable, started_ms=facts.started_ms,
            )  # fmt: skip
        except Exception:
            with suppress(SpawnFailed, SpawnerGone):
                await self._process.kill_all()
                await asyncio.wait((self._process.exited,), timeout=KILLED_DRAIN_SECONDS)
            raise
        ending = judge(
            facts,
            stopped=stopped,
            survivors=survivors,
            exited=exited,
            usage=self._usage(),
            whole=bool(self._cgroup.fds),
            duration_us=micros_since(facts.began_ns),
        )
        self._spool.finish(ending)
        return ending

    async def _attend(self) -> tuple[Stop | None, list[int]]:
        """Pump until the command has ended by itself or was killed.

        Returns:
            Why it was killed, if it was, and the process ids of the survivors.
        """
        process = self._process
        pump = Pump(self._output, self._spool, {process.stdout: STDOUT, process.stderr: STDERR}, self._window)
        left_seconds = self._facts.timeout - (time.monotonic_ns() - self._facts.began_ns) / 1e9
        # An earlier worker may have begun to end it.
        if stopped := Stop.of_number(self._spool.stopped):
            left_seconds = 0
        # A pump that fails cancels this block: a command whose output cannot be read must not run on.
        async with supervised() as parts:
            pumping = parts.start(pump.run())
            serving = None if self._session is None else parts.start(self._session())
            await asyncio.wait(
                (process.exited, self._stop), timeout=max(0, left_seconds), return_when=asyncio.FIRST_COMPLETED
            )
            survivors: list[int] = []
            if not process.exited.done():
                stopped = stopped or (self._stop.result() if self._stop.done() else Stop.TIMED_OUT)
                # A worker that is killed now leaves the reason to the next one.
                self._spool.note_stop(stopped.number)
                survivors = await process.kill(self._facts.kill_grace)
            if serving is not None:
                await cancel_all([serving])
            # The rest of the output waits for no caller.
            self._window.open()
            return stopped, await self._drain(pump, pumping) or survivors

    async def _drain(self, pump: Pump, pumping: asyncio.Task[None]) -> list[int]:
        """Take the rest of the output. An execution ends with its command, so its leftovers are killed.

        Returns:
            Process ids of leftovers that could not be killed.
        """
        taken = asyncio.ensure_future(pump.taken.wait())
        try:
            await asyncio.wait((pumping, taken), timeout=DRAIN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            survivors: list[int] = []
            # Also after the pipes are closed: a leftover may have closed its own ends.
            if not self._cgroup.fds or self._cgroup.populated() or not taken.done():
                survivors = await self._process.kill_all()
            await asyncio.wait((pumping, taken), timeout=KILLED_DRAIN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            taken.cancel()
        # Without a cgroup, a process that left the group may hold the pipes for ever. Their present content is still
        # taken. While Redis is unavailable this waits, so that no byte is lost.
        pump.stop()
        await pumping
        return survivors

    def _usage(self) -> ResourceUsage:
        """Return the used resources, or no values if one cannot be read, so that the ending is reported in any case."""
        try:
            return self._cgroup.usage()
        except Exception:
            log.exception("usage.unreadable", id=self._exec_id)
            return ResourceUsage()
