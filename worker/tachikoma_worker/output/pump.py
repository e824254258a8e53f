"""The output pump: from a command's two pipes into its spool, and from there into the output log, chunk by chunk.

A chunk is everything that can be read at one moment, up to a bound. So a fast writer produces large chunks, and a slow
one has each line delivered at once. While Redis is slow or unavailable, the spool absorbs the output. When the spool is
full, the command waits in its write. Nothing is lost, and only the bytes on their way to Redis are held in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress

from tachikoma.config.tasks import supervised
from tachikoma_worker.output.output_log import OutputLog
from tachikoma_worker.output.spool import CHUNK_BYTES, Spool, SpoolError
from tachikoma_worker.output.window import OutputWindow

__all__ = ["Pump"]

#: Approximate bytes of output in one round trip to Redis.
SEND_BYTES = 2 * CHUNK_BYTES
#: Size of the pipes that the spawner creates.
PIPE_BYTES = 1024 * 1024
#: Reads of each pipe after `stop`: the content of a full pipe, and one chunk. So a process that keeps writing cannot
#: delay the ending.
LAST_READS = PIPE_BYTES // CHUNK_BYTES + 1


class Pump:
    """Moves output from pipes to Redis until all pipes are closed or `stop` is called."""

    def __init__(
        self, output: OutputLog, spool: Spool, pipes: Mapping[int, int], window: OutputWindow | None = None
    ) -> None:
        """Prepare a pump.

        Args:
            output: the log that receives the chunks.
            spool: the spool between pipes and log.
            pipes: the stream of each descriptor.
            window: limits how far the output is ahead of an attached caller; None for no limit.
        """
        self._output = output
        self._window = window or OutputWindow()
        self._spool = spool
        self._open = dict(pipes)
        self._ready: set[int] = set()
        self._wake = asyncio.Event()
        self._stopped = False
        #: Set when the spool has new chunks, and when its chunks were sent.
        self._more = asyncio.Event()
        self._sent = asyncio.Event()
        #: Set when no more output will be taken from the pipes.
        self.taken = asyncio.Event()

    def stop(self) -> None:
        """Take the content of the pipes now, and then end although a process still holds them open."""
        self._stopped = True
        self._window.open()
        self._output.wait_only_for_known_readers()
        self._wake.set()

    async def run(self) -> None:
        """Pump until all output is in Redis."""
        # Supervised, so that a failure on either side ends the other one: each may wait for the other for ever.
        async with supervised() as parts:
            sending = parts.start(self._send())
            await self._take()
            self.taken.set()
            self._more.set()
            await sending

    # --- from the pipes into the spool --------------------------------------------------------------------------------

    async def _take(self) -> None:
        loop = asyncio.get_running_loop()
        for descriptor in self._open:
            loop.add_reader(descriptor, self._on_readable, descriptor)
        try:
            while self._open and not self._stopped:
                await self._wake.wait()
                self._wake.clear()
                ready, self._ready = self._ready, set()
                await self._window.room(self._spool.offset)
                await self._take_from(ready)
                self._window.taken(self._spool.offset)
                # Watched again only now: meanwhile new output waits in the pipe.
                for descriptor in ready & self._open.keys():
                    loop.add_reader(descriptor, self._on_readable, descriptor)
            for _ in range(LAST_READS):
                if not await self._take_from(set(self._open)):
                    return
        finally:
            for descriptor in self._open:
                with suppress(OSError, ValueError):
                    loop.remove_reader(descriptor)

    def _on_readable(self, descriptor: int) -> None:
        # Not watched until it was read, or the loop would spin while the spool is full.
        asyncio.get_running_loop().remove_reader(descriptor)
        self._ready.add(descriptor)
        self._wake.set()

    async def _take_from(self, descriptors: set[int]) -> bool:
        """Take one chunk from each pipe, and return whether there was any."""
        found = False
        for descriptor in sorted(descriptors & self._open.keys()):
            try:
                moved = await self._take_chunk(self._open[descriptor], descriptor)
            except BlockingIOError:
                continue
            if moved:
                found = True
                self._more.set()
            else:
                asyncio.get_running_loop().remove_reader(descriptor)
                del self._open[descriptor]
        return found

    async def _take_chunk(self, kind: int, descriptor: int) -> int:
        """Move one chunk into the spool, which is restarted if it is full and moved to memory if the disk is."""
        try:
            if self._spool.full:
                await self._all_sent()
                self._spool.renew(self._output.totals())
            return self._spool.take(kind, descriptor)
        except SpoolError as error:
            await self._all_sent()
            self._spool.continue_in_memory(error, self._output.totals())
            return self._spool.take(kind, descriptor)

    async def _all_sent(self) -> None:
        while self._spool.pending:
            self._sent.clear()
            await self._sent.wait()

    # --- from the spool to Redis --------------------------------------------------------------------------------------

    async def _send(self) -> None:
        while True:
            while self._spool.pending:
                await self._output.append(self._spool.chunks(SEND_BYTES))
                self._spool.done()
                self._sent.set()
            if self.taken.is_set():
                return
            self._more.clear()
            await self._more.wait()
