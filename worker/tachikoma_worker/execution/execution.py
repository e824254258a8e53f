"""One execution, from the signed order to the signed receipt, in the order of the steps.

1. Verify the order.
2. Claim the execution in the journal and in Redis; meanwhile check and prepare the command.
3. Create the spool and start the command.
4. Pump its output until it exits, times out, is cancelled, or the agent shuts down; kill what is left.
5. Deliver the receipt.

Everything that the agent acts on is inside the verified order. A restarted worker continues from the spool (`resume`).
After the claim every path leads to an `Ending`, and every ending is delivered.
"""

from __future__ import annotations

import asyncio
import hashlib
import posixpath
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import structlog
from redis.exceptions import RedisError

from tachikoma.config import stages, tracing
from tachikoma.config.stages import Stage
from tachikoma.identity.signed_messages import WorkOrder
from tachikoma.identity.signing import InvalidSignature, UnreadableMessage
from tachikoma.identity.spiffe import InvalidIdentity
from tachikoma.redis import keys
from tachikoma.streams.heartbeat import Started
from tachikoma.vocabulary.states import ExecState
from tachikoma_worker import VERSION
from tachikoma_worker.cgroups.hierarchy import Cgroup, NoCgroup
from tachikoma_worker.confinement.prepare import Prepared, narrowed, prepare
from tachikoma_worker.confinement.process import Process, kill_all
from tachikoma_worker.confinement.protocol import Held, SpawnerGone, SpawnFailed
from tachikoma_worker.confinement.refusals import CannotExecute, Refused
from tachikoma_worker.confinement.start import start
from tachikoma_worker.execution.cancel import read_cancel_until_available, verify_cancel
from tachikoma_worker.execution.claim import ClaimOutcome, claim, prevent_start
from tachikoma_worker.execution.context import Context
from tachikoma_worker.execution.facts import facts_of, spool_bytes
from tachikoma_worker.execution.interactive import forget_session, interactive
from tachikoma_worker.execution.journal import JournalError
from tachikoma_worker.execution.order import verify_order
from tachikoma_worker.execution.receipt import EarlierReceipt, Output, deliver
from tachikoma_worker.execution.running import RunningCommand
from tachikoma_worker.execution.verdict import Stop, end_unknown, failure, not_started, stopped_before_start
from tachikoma_worker.execution.write_back import publish_if_lost
from tachikoma_worker.output.output_log import OutputLog
from tachikoma_worker.output.pump import Pump
from tachikoma_worker.output.records import Ending, Facts, Totals
from tachikoma_worker.output.spool import Spool, SpoolError

__all__ = ["Execution"]

log = structlog.get_logger(__name__)

#: A start is reported only for commands that run longer. The receipt of a shorter one contains the time of its start.
STARTED_NOTICE_SECONDS = 0.02
#: Error of an order whose id the agent has claimed for another one.
OTHER_ORDER = "the agent has executed another order of this id, whose record the ledger lost; use a new id"


class Execution:
    """One delivery of an order, or one execution that an earlier worker left."""

    def __init__(self, context: Context, exec_id: str, *, order_sha256: str, token: str = "") -> None:
        """Prepare an execution; use `of_order` or `of_earlier_worker`."""
        self._context = context
        self.exec_id = exec_id
        self._token = token
        #: SHA-256 of the signed order.
        self.order_sha256 = order_sha256
        #: From the order; empty if the worker that verified it did not store it.
        self._requested_by = ""
        #: The lane of the orchestrator that sent the order; None if it is not known.
        self._reply: int | None = None
        self._process: Process | None = None
        self._spool: Spool | None = None
        #: None until there may be output.
        self._output: OutputLog | None = None
        #: Whether the command was left to the next worker.
        self._left = False
        self._stop: asyncio.Future[Stop] = asyncio.get_running_loop().create_future()

    @classmethod
    def of_order(cls, context: Context, exec_id: str, token: str) -> Execution:
        """Return the execution of a delivered order, which is still to be verified."""
        return cls(context, exec_id, order_sha256=hashlib.sha256(token.encode()).hexdigest(), token=token)

    @classmethod
    def of_earlier_worker(cls, context: Context, exec_id: str, order_sha256: str) -> Execution:
        """Return an execution that an earlier worker claimed and did not finish."""
        return cls(context, exec_id, order_sha256=order_sha256)

    # --- called by the engine -----------------------------------------------------------------------------------------

    def stop(self, why: Stop) -> None:
        """Request the end of the command. The first reason counts."""
        if not self._stop.done():
            self._stop.set_result(why)

    def cancel(self, token: str) -> None:
        """End the command if a cancel is genuine and for this execution; log it otherwise."""
        try:
            verify_cancel(self._context, self.exec_id, self._requested_by, token)
        except (InvalidSignature, InvalidIdentity) as error:
            log.warning("cancel.refused", id=self.exec_id, reason=str(error))
            return
        self.stop(Stop.CANCELLED)

    async def run(self, since_ns: int | None = None) -> None:
        """Run the command if the order is genuine and was never started before, and deliver the receipt.

        Args:
            since_ns: when the order was handed over, by CLOCK_MONOTONIC; None for now.
        """
        stages.begin(self.exec_id, since_ns=since_ns)
        stages.passed(Stage.HAND_OVER)
        try:
            order = verify_order(self._context, self.exec_id, self._token)
        except UnreadableMessage as error:
            await self._reject_unreadable(str(error))
            return
        except (InvalidSignature, InvalidIdentity) as error:
            # No trusted party sent it, so no receipt is due.
            log.warning("order.refused", id=self.exec_id, reason=str(error))
            return
        stages.passed(Stage.VERIFY)
        self._requested_by, self._reply = order.sub, order.reply
        with tracing.execution(self.exec_id, order.trace, since_ns):
            await self._execute(order)

    async def _execute(self, order: WorkOrder) -> None:
        """Run the command of a verified order if it was never started before, and deliver the receipt."""
        if order.journal != self._context.journal.boot:
            # It was signed for an earlier journal, which may have started it.
            log.warning("order.of_another_journal", id=self.exec_id)
            await self.report_lost("the agent lost its journal, and does not know whether it was started before")
            return
        # In a thread: it waits for disks and kernel locks, while the claim waits for Redis and the journal.
        preparing = asyncio.ensure_future(asyncio.to_thread(self._prepare, order))
        ending = await self._claim_and_start(preparing, order)
        if ending is not None:
            await publish_if_lost(self._context, order, self._token)
            await self._deliver(ending, EarlierReceipt.IMPOSSIBLE)

    async def resume(self, spool: Spool, held: Held | None) -> None:
        """Continue an execution that an earlier worker started, and deliver the receipt.

        Args:
            spool: the spool of the earlier worker.
            held: the command, if the spawner holds it.
        """
        self._spool, self._requested_by, self._reply = spool, spool.start.requested_by, spool.start.reply
        cgroup: Cgroup = NoCgroup()
        try:
            self._output = self._output_log(spool.start, spool.start.totals)
            self._context.background(self._find_cancel())
            cgroup = await self._reopen_cgroup()
            ending = await self._continue(spool, cgroup, held)
        except asyncio.CancelledError:
            self._leave()
            raise
        except Exception as error:
            ending = await self._failed(error, cgroup)
        self._context.background(self._give_back(cgroup.remove))
        await self._deliver(ending, EarlierReceipt.POSSIBLE)

    async def report_lost(self, why: str) -> None:
        """Deliver a receipt that says LOST, for an execution about which nothing more is known."""
        ending = Ending(state=ExecState.LOST, error=why)
        await deliver(
            self._context, self.exec_id, self.order_sha256, ending, Output.unknown(), EarlierReceipt.POSSIBLE,
            reply=self._reply,
        )  # fmt: skip

    async def report_other_order(self) -> None:
        """Answer a genuine order whose id the agent is executing for another order."""
        try:
            self._reply = verify_order(self._context, self.exec_id, self._token).reply
        except (InvalidSignature, InvalidIdentity) as error:
            log.warning("order.refused", id=self.exec_id, reason=str(error))
            return
        await self.report_lost(OTHER_ORDER)

    async def _reject_unreadable(self, reason: str) -> None:
        """Deliver a receipt for a genuine order that this version cannot read, so that its execution ends at once."""
        log.warning("order.unreadable", id=self.exec_id, reason=reason)
        try:
            claimed = await claim(self._context, self.exec_id, self.order_sha256, self._token)
        except JournalError:
            await prevent_start(self._context, self.exec_id)
        else:
            if claimed.outcome is not ClaimOutcome.GRANTED:
                return
        error = f"not started: the order {reason}; the worker is version {VERSION}"
        await self._deliver(Ending(state=ExecState.REJECTED, error=error), EarlierReceipt.POSSIBLE)

    # --- before the start ---------------------------------------------------------------------------------------------

    def _prepare(self, order: WorkOrder) -> Prepared:
        """Check the order against the agent's own labels and policy, and prepare its command. Blocks."""
        context = self._context
        if order.bound is None and order.labels != context.settings.labels:
            raise Refused("policy decided by other labels than the agent has")
        if context.local_policy is not None:
            order = narrowed(order, context.local_policy.current, context.settings.labels)
        return prepare(order, context.settings, context.spawner.uid, context.cgroups, context.enclosures)

    async def _claim_and_start(self, preparing: asyncio.Future[Prepared], order: WorkOrder) -> Ending | None:
        """Claim the execution and start its command.

        Returns:
            The ending, or None if this delivery was not granted the claim.
        """
        try:
            claimed = await claim(self._context, self.exec_id, self.order_sha256, self._token)
        except JournalError as error:
            await self._abandon(preparing)
            return Ending(state=ExecState.REJECTED, error=f"the agent's journal cannot be written: {error}")
        except Exception as error:
            log.exception("execution.failed", id=self.exec_id)
            await self._abandon(preparing)
            return failure(error)
        if claimed.outcome is not ClaimOutcome.GRANTED:
            await self._discard(preparing)
            if claimed.outcome is ClaimOutcome.OTHER_ORDER:
                await self.report_lost(OTHER_ORDER)
            return None
        stages.passed(Stage.CLAIM)
        if claimed.cancel is not None:
            self.cancel(claimed.cancel)
        try:
            return await self._start(preparing, order)
        except Exception as error:
            return await self._failed(error, NoCgroup())

    async def _abandon(self, preparing: asyncio.Future[Prepared]) -> None:
        """Discard the preparation of a command that must never start, not even from a copy of its order."""
        await self._discard(preparing)
        await prevent_start(self._context, self.exec_id)

    async def _discard(self, preparing: asyncio.Future[Prepared]) -> None:
        """Discard the preparation of a command that does not start."""
        try:
            await asyncio.to_thread((await preparing).discard)
        except (Refused, CannotExecute):
            return
        except Exception:
            log.exception("preparation.not_discarded", id=self.exec_id)

    # --- start --------------------------------------------------------------------------------------------------------

    async def _start(self, preparing: asyncio.Future[Prepared], order: WorkOrder) -> Ending:
        """Start the prepared command, unless it is too late for that, and wait for its ending."""
        try:
            prepared = await preparing
            stages.passed(Stage.PREPARE)
        except (Refused, CannotExecute) as error:
            return not_started(error)
        try:
            if time.time() >= order.exp:
                # The claim waited for Redis. The orchestrator may have reported by now that the command never started.
                return Ending(state=ExecState.EXPIRED, error="not started: its claim came after its queue timeout")
            if refusal := self._context.lives.refusal(order):
                return Ending(state=ExecState.EXPIRED, error=refusal)
            if self._stop.done():
                return stopped_before_start(self._stop.result())
            return await self._run(prepared)
        except asyncio.CancelledError:
            self._leave()
            raise
        finally:
            if not self._left:
                self._context.background(self._give_back(prepared.discard))

    async def _run(self, prepared: Prepared) -> Ending:
        """Create the spool, run the command, and return its ending."""
        facts = facts_of(self._context, prepared, self.order_sha256)
        self._output = self._output_log(facts)
        try:
            self._spool = self._context.reserve.write(partial(self._create_spool, facts))
        except SpoolError as error:
            return Ending(state=ExecState.REJECTED, error=f"the agent's spool cannot be written: {error}")
        stages.passed(Stage.SPOOL)
        with tracing.span("command", {"process.executable.name": posixpath.basename(prepared.executable.path)}):
            return await self._run_command(prepared, self._spool, self._output)

    async def _run_command(self, prepared: Prepared, spool: Spool, output: OutputLog) -> Ending:
        """Start the command and wait for its ending."""
        try:
            process = self._process = await start(prepared, self._context.spawner)
            stages.passed(Stage.SPAWN)
        except (Refused, CannotExecute) as error:
            return not_started(error)
        except SpawnerGone as gone:
            return Ending(state=ExecState.LOST, error=f"whether it started is not known: {gone}")
        notice = asyncio.get_running_loop().call_later(STARTED_NOTICE_SECONDS, self._announce, spool.start.started_ms)
        try:
            ending = await self._command(process, prepared.cgroup, spool, output).finish()
            stages.passed(Stage.RUN)
            return ending
        finally:
            notice.cancel()

    def _create_spool(self, facts: Facts) -> Spool:
        return Spool.create(self._context.spools, self.exec_id, facts, max_bytes=spool_bytes(self._context, facts))

    def _announce(self, started_ms: int) -> None:
        """Publish that the command runs. The notice may be lost without harm."""
        notice = Started(id=self.exec_id, started_ms=started_ms).model_dump_json()

        async def publish() -> None:
            with suppress(RedisError, OSError):
                await self._context.redis.publish(keys.events(self._context.agent), notice)

        self._context.background(publish())

    # --- take-over ----------------------------------------------------------------------------------------------------

    async def _find_cancel(self) -> None:
        """Apply the cancel that was published while no worker listened; Redis retains it."""
        token = await read_cancel_until_available(self._context, self.exec_id)
        if token is not None:
            self.cancel(token)

    async def _reopen_cgroup(self) -> Cgroup:
        """Return the cgroup that an earlier worker created. Without it the command is still taken over."""
        try:
            return await asyncio.to_thread(self._context.cgroups.open, self.exec_id)
        except Exception:
            log.exception("cgroup.not_opened", id=self.exec_id)
            return NoCgroup()

    async def _continue(self, spool: Spool, cgroup: Cgroup, held: Held | None) -> Ending:
        """Continue with the command, or send the rest of its output if it has ended."""
        assert self._output is not None
        if held is not None:
            try:
                self._process = await self._context.spawner.take(held)
            except (SpawnFailed, SpawnerGone) as error:
                return end_unknown(spool.start, str(error))
        if spool.end is None and self._process is not None:
            log.info("execution.taken_back", id=self.exec_id, pid=self._process.pid)
            return await self._command(self._process, cgroup, spool, self._output, resumed=True).finish()
        self._output.wait_only_for_known_readers()
        await Pump(self._output, spool, {}).run()
        if spool.end is not None:
            return spool.end
        await self._context.spawner.sweep(cgroup.fds)
        return end_unknown(spool.start, "the agent's worker and its spawner were both killed")

    # --- whatever happens ---------------------------------------------------------------------------------------------

    def _command(
        self, process: Process, cgroup: Cgroup, spool: Spool, output: OutputLog, *, resumed: bool = False
    ) -> RunningCommand:
        window, session = interactive(self._context, self.exec_id, process, spool.start, self.stop, resumed=resumed)
        return RunningCommand(self.exec_id, process, cgroup, spool, output, self._stop, window=window, session=session)

    def _output_log(self, facts: Facts, resumed: Totals | None = None) -> OutputLog:
        output = OutputLog(
            self._context.redis, self._context.agent, self.exec_id,
            log_bytes=facts.log_bytes, excerpt_bytes=self._context.settings.excerpt_bytes, terminal=facts.has_terminal,
            waits=facts.waits, attached=facts.attached, wait_seconds=facts.wait_seconds, resumed=resumed,
        )  # fmt: skip
        self._context.sent.track(self.exec_id, output)
        return output

    async def _failed(self, error: Exception, cgroup: Cgroup) -> Ending:
        """Return the ending after an unexpected exception, and kill whatever runs of the command."""
        log.error("execution.failed", id=self.exec_id, exc_info=error)
        spawner = self._context.spawner
        for kill in (partial(kill_all, spawner, self.exec_id), partial(spawner.sweep, cgroup.fds)):
            try:
                await kill()
            except (SpawnFailed, SpawnerGone):
                # Nothing of this name runs, or nothing can be killed any more.
                continue
            except Exception:
                log.exception("execution.not_killed", id=self.exec_id)
        started = self._spool.start if self._spool is not None and self._process is not None else None
        return failure(error, started)

    def _leave(self) -> None:
        """Leave the command to the next worker, because this one ends."""
        self._left = True
        if self._process is not None:
            self._process.leave()
        if self._spool is not None:
            self._spool.close()

    async def _give_back(self, discard: Callable[[], object]) -> None:
        """Release the command and its cgroup, in the background: removing a cgroup may wait for the kernel."""
        if self._process is not None:
            await self._process.close()
        await asyncio.to_thread(discard)
        if self._spool is not None and self._spool.start.session is not None:
            await forget_session(self._context, self.exec_id)

    async def _deliver(self, ending: Ending, earlier: EarlierReceipt) -> None:
        """Deliver the receipt, then retain the spool for a while, or remove it in the background."""
        tracing.note({"tachikoma.execution.state": ending.state.value, "process.exit.code": ending.exit_code})
        try:
            output = Output.of(self._output)
        except Exception:
            log.exception("output.not_described", id=self.exec_id)
            output = Output.unknown()
        await deliver(self._context, self.exec_id, self.order_sha256, ending, output, earlier, reply=self._reply)
        try:
            if remove := self._context.sent.finish(self.exec_id, self._spool):
                # A removal waits for the disk while the journal is synced, and all executions would wait with it.
                self._context.background(asyncio.to_thread(remove))
        except OSError as error:
            # The journal says that the execution is finished, so the next start of the worker removes it.
            log.warning("spool.not_retained", id=self.exec_id, error=str(error))
