"""The worker's engine: one asyncio loop in a thread of its own; each execution is one coroutine in it.

Celery's hub only takes messages and hands them over. So output flows on while Celery reconnects to its broker, and no
thread is held by a running command.
"""

from __future__ import annotations

import asyncio
import os
import platform
import secrets
import signal
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import structlog
from redis.exceptions import RedisError

from tachikoma.config import error_reporting
from tachikoma.config.tasks import cancel_all
from tachikoma.errors import ConfigurationError
from tachikoma.identity.open import open_identity
from tachikoma.identity.spiffe import InvalidIdentity, agent_id, key_digest
from tachikoma.identity.svid import Svid
from tachikoma.policy.watch import PolicyWatch
from tachikoma.redis import keys
from tachikoma.redis.access import connect
from tachikoma.redis.commands import Redis
from tachikoma.streams.heartbeat import MAX_ROOTS, Heartbeat, Trust
from tachikoma.vocabulary.limits import capability_mask
from tachikoma_worker import VERSION
from tachikoma_worker.cgroups.cgroups import Hierarchy, detect
from tachikoma_worker.confinement.prepare import user_name
from tachikoma_worker.confinement.spawner import Held, Spawner, SpawnerGone, SpawnFailed
from tachikoma_worker.engine.joining import REJOIN, Renewal
from tachikoma_worker.engine.lease import Lease
from tachikoma_worker.execution.execution import SPOOL, Context, Execution, Stop, deliver, lost_receipt
from tachikoma_worker.execution.journal import Journal, Unfinished
from tachikoma_worker.output.spool import Spool, SpoolError, host_boot
from tachikoma_worker.settings import WorkerSettings

__all__ = ["Engine", "sweep"]

log = structlog.get_logger(__name__)

#: Between looks at the agent's own policy file.
POLICY_SECONDS = 1.0
#: Between attempts to listen for cancels while Redis is away.
RETRY_SECONDS = 0.25
#: After so long without a cancel the connection is tried with a ping.
IDLE_SECONDS = 10.0
#: After the stop grace, how long receipts may take to be delivered.
DELIVER_SECONDS = 5.0


def _warnings(cgroups: Hierarchy, spawner: Spawner) -> tuple[str, ...]:
    """What this host cannot enforce."""
    found = list(cgroups.warnings)
    if spawner.uid != 0:
        found.append(f"commands run as {user_name(spawner.uid)} only, with its rights: the spawner is not root")
        found.append(f"programs that belong to {user_name(spawner.uid)} are executed as if root had put them there")
    return tuple(found)


def _trust(svid: Svid) -> Trust:
    """What the agent says of its identity."""
    try:
        root = svid.bundle.root_of(svid.chain[0], list(svid.chain[1:]))
    except InvalidIdentity:
        root = ""
    return Trust(
        spiffe_id=str(svid.spiffe_id),
        expires_ms=int(svid.not_after.timestamp() * 1000),
        root=root,
        bundle=tuple(key_digest(certificate) for certificate in svid.bundle.roots[:MAX_ROOTS]),
    )


def _connect(settings: WorkerSettings) -> Spawner:
    return Spawner.connect(settings.spawner or settings.data / "spawner.sock", capability_mask(settings.capabilities))


async def _sweep_one(spawner: Spawner, cgroups: Hierarchy, name: str, held: Held | None) -> None:
    """End what is left of one execution that nobody waits for."""
    try:
        if held is not None:
            process = await spawner.take(held)
            if not await process.kill_all():
                await process.exited
            await process.close()
        cgroup = cgroups.open(name)
        survivors = await spawner.sweep(cgroup.fds)
        removed = await asyncio.to_thread(cgroup.remove)
    except (SpawnFailed, SpawnerGone, OSError) as error:
        log.warning("leftover.not_removed", id=name, error=str(error))
        return
    if survivors or not removed:
        log.warning("leftover.not_removed", id=name, pids=survivors)


async def sweep(settings: WorkerSettings) -> None:
    """End what a worker left that was killed: its commands, its spawner and its cgroups. The worker must not run.

    Raises:
        ConfigurationError: its spawner cannot be reached.
    """
    cgroups = detect(settings.agent_id, name=settings.cgroup_name, where=settings.cgroup)
    spawner = _connect(settings)
    spawner.attach()
    held = {item.name: item for item in await spawner.held()}
    for name in sorted({*cgroups.leftovers(), *held}):
        await _sweep_one(spawner, cgroups, name, held.get(name))
    await spawner.stop(anyway=settings.spawner is None)
    cgroups.close()


class Engine:
    """Runs the agent's executions. Its public methods are for other threads."""

    def __init__(self, settings: WorkerSettings) -> None:
        """Read identity and journal.

        Raises:
            ConfigurationError: one of them cannot be used, or the identity is another agent's.
        """
        self._settings = settings
        joined = Renewal.prepare(settings.identity)
        identity = open_identity(settings.identity)
        svid = identity.current()
        try:
            svid.verify()
        except InvalidIdentity as error:
            remedy = f"; {REJOIN}" if joined is not None else ""
            raise ConfigurationError(f"the agent's identity cannot be used: {error}{remedy}") from error
        expected = agent_id(svid.spiffe_id.trust_domain, settings.agent_id)
        if svid.spiffe_id != expected:
            raise ConfigurationError(f"the identity in {identity.place} is {svid.spiffe_id}, not {expected}")
        error_reporting.identify(svid.spiffe_id.trust_domain)
        self._renewal = None if joined is None else Renewal(Path(settings.identity or ""), joined, identity)
        self.access = access = settings.redis(identity)
        journal = Journal(settings.data)
        self._spools = settings.data / SPOOL
        self._spools.mkdir(exist_ok=True, mode=0o700)
        cgroups = detect(settings.agent_id, name=settings.cgroup_name, where=settings.cgroup)
        spawner = _connect(settings)
        self._warnings = _warnings(cgroups, spawner)
        for warning in self._warnings:
            log.warning("agent.warning", warning=warning)
        self._context = Context(
            settings=settings,
            redis=connect(access, name=f"agent-{settings.agent_id}"),
            journal=journal,
            spawner=spawner,
            cgroups=cgroups,
            local_policy=PolicyWatch(settings.local_policy) if settings.local_policy else None,
            identity=identity,
            boot=journal.boot,
            host=host_boot(),
            behind=self._behind,
        )
        self._subscriptions = connect(access, name=f"agent-{settings.agent_id}-control", max_connections=2)
        self._run = secrets.token_hex(8)
        self._lease = Lease(settings, access, self._heartbeat)
        self._running: dict[str, Execution] = {}
        #: Orders that came before it was known what an earlier worker left; at most one for each slot.
        self._early: list[tuple[str, str, Callable[[], None]]] | None = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._background: list[asyncio.Task[None]] = []
        self._cleaning: set[asyncio.Task[object]] = set()
        self._stopping = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)

    # --- for other threads --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the loop; what an earlier run left is taken back, or ended and reported, from here on."""
        leftovers = self._context.journal.unfinished()
        # Listed now, before any order makes one of its own.
        known = {leftover.exec_id for leftover in leftovers}
        for path in self._spools.iterdir():
            if path.name not in known:
                path.unlink()
        self._thread.start()
        self._loop.call_soon_threadsafe(self._start, leftovers)
        self._lease.start()

    def submit(self, exec_id: str, token: str, done: Callable[[], None]) -> None:
        """Run an order; `done` is called in the engine's thread when there is nothing more to do for it."""
        self._loop.call_soon_threadsafe(self._accept, exec_id, token, done)

    @property
    def stop_seconds(self) -> float:
        """How long `stop` waits for what runs and its reports."""
        graces = self._settings.stop_grace + self._settings.kill_grace
        return graces.total_seconds() + 2 * DELIVER_SECONDS

    def stop(self) -> None:
        """End: wait for what runs, then kill it, report it, and close. Bounded, and safe to repeat."""
        if not self._thread.is_alive():
            return
        finished = asyncio.run_coroutine_threadsafe(self._stop(), self._loop)
        with suppress(TimeoutError):
            finished.result(self.stop_seconds)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DELIVER_SECONDS)
        self._context.journal.close()
        self._context.identity.close()

    # --- in the engine's thread ---------------------------------------------------------------------------------------

    def _start(self, leftovers: list[Unfinished]) -> None:
        self._background = [
            self._loop.create_task(self._listen(), name="control"),
            self._loop.create_task(self._watch_policy(), name="policy"),
        ]
        if self._renewal is not None:
            self._background.append(self._loop.create_task(self._renewal.run(), name="renewal"))
        for task in self._background:
            task.add_done_callback(self._background_ended)
        self._context.spawner.attach()
        assert self._context.spawner.gone is not None
        self._context.spawner.gone.add_done_callback(lambda _: self._spawner_gone())
        # Listed now, before any order makes a cgroup of its own.
        self._track(self._loop.create_task(self._take_over(leftovers, self._context.cgroups.leftovers())))

    def _spawner_gone(self) -> None:
        # Nothing can be started or ended without it. The next start of the worker sweeps up what it left.
        if not self._stopping:
            os.kill(os.getpid(), signal.SIGTERM)

    def _behind(self, work: Coroutine[Any, Any, object]) -> None:
        task = self._loop.create_task(work)
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        # Without control this would be an agent that nobody can stop: better none at all.
        log.critical("engine.failed", task=task.get_name(), exc_info=task.exception())
        os.kill(os.getpid(), signal.SIGTERM)

    def _track(self, task: asyncio.Task[None], exec_id: str = "") -> None:
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and task.exception() is not None:
                log.error("execution.failed", id=exec_id, exc_info=task.exception())

        task.add_done_callback(ended)

    def _accept(self, exec_id: str, token: str, done: Callable[[], None]) -> None:
        if self._early is not None:
            self._early.append((exec_id, token, done))
            return
        if exec_id in self._running:
            # Not even prepared: what is prepared has the name of the first delivery's.
            log.info("order.repeated", id=exec_id)
            done()
            return
        execution = Execution(self._context, exec_id, token)
        self._attend(execution, execution.run(), done)

    def _attend(
        self, execution: Execution, work: Coroutine[Any, Any, None], done: Callable[[], None] | None = None
    ) -> None:
        self._running[execution.exec_id] = execution

        async def run() -> None:
            error_reporting.concerns(execution.exec_id)
            try:
                await work
            finally:
                del self._running[execution.exec_id]
                if done is not None:
                    done()

        self._track(self._loop.create_task(run()), execution.exec_id)

    async def _take_over(self, leftovers: list[Unfinished], cgroups: list[str]) -> None:
        """Go on with what an earlier run of the worker started; end and report what nobody can go on with."""
        held = {item.name: item for item in await self._context.spawner.held()}
        given_up: list[tuple[Unfinished, str]] = []
        taken: set[str] = set()
        for leftover in leftovers:
            try:
                spool = Spool.open(self._spools, leftover.exec_id, most=self._settings.spool_bytes)
            except SpoolError as error:
                given_up.append((leftover, str(error)))
                continue
            if spool.start.order_sha256 != leftover.order_sha256:
                spool.close()
                given_up.append((leftover, "its spool is of another order"))
                continue
            taken.add(leftover.exec_id)
            execution = Execution(self._context, leftover.exec_id, "")
            self._attend(execution, execution.resume(spool, held.get(leftover.exec_id)))
        # From here on orders start commands: none of those is in the lists.
        early, self._early = self._early or [], None
        for order in early:
            self._accept(*order)
        for name in sorted({*cgroups, *held} - taken):
            await _sweep_one(self._context.spawner, self._context.cgroups, name, held.get(name))
        for leftover, reason in given_up:
            why = "the agent's worker was killed before the command's end was known"
            item = held.get(leftover.exec_id)
            if item is not None and item.exit is None:
                why += "; the command was still running and was killed"
            log.warning("execution.given_up", id=leftover.exec_id, reason=reason)
            receipt = lost_receipt(self._context, leftover.exec_id, leftover.order_sha256, why)
            await deliver(self._context, receipt, b"", b"", again=True)
            # One that a killed worker had only begun to write, for instance.
            (self._spools / leftover.exec_id).unlink(missing_ok=True)

    async def _stop(self) -> None:
        self._stopping = True
        if not self._settings.leave_running:
            # 1. What runs may go on for a while.
            if self._tasks:
                await asyncio.wait(set(self._tasks), timeout=self._settings.stop_grace.total_seconds())
            # 2. Then it is killed, and reported as that.
            for execution in list(self._running.values()):
                execution.stop(Stop.SHUTDOWN)
            if self._tasks:
                kill_seconds = self._settings.kill_grace.total_seconds() + DELIVER_SECONDS
                await asyncio.wait(set(self._tasks), timeout=kill_seconds)
        # 3. Nobody is to take this agent for alive.
        for task in (*self._background, *self._tasks):
            task.remove_done_callback(self._background_ended)
        await cancel_all([*self._background, *self._tasks])
        await asyncio.to_thread(self._lease.stop)
        # 4. The spawner, if nothing is left in it, and the agent's cgroups.
        if self._cleaning:
            await asyncio.wait(set(self._cleaning), timeout=DELIVER_SECONDS)
        await self._context.spawner.stop()
        self._context.cgroups.close()
        # 5. Connections last.
        with suppress(RedisError, OSError):
            await self._subscriptions.aclose()
            await self._context.redis.aclose()

    # --- heartbeat ----------------------------------------------------------------------------------------------------

    def _heartbeat(self) -> Heartbeat:
        return Heartbeat(
            boot=self._context.boot,
            run=self._run,
            version=VERSION,
            hostname=platform.node(),
            labels=self._settings.labels,
            running=len(self._running),
            slots=self._settings.slots,
            load=psutil.getloadavg()[0],
            memory_used=psutil.virtual_memory().percent / 100,
            disk_used=psutil.disk_usage(str(self._settings.data)).percent / 100,
            warnings=self._warnings,
            trust=_trust(self._context.identity.current()),
        )

    # --- policy -------------------------------------------------------------------------------------------------------

    async def _watch_policy(self) -> None:
        policies = self._context.local_policy
        while True:
            await asyncio.sleep(POLICY_SECONDS)
            if policies is None or not await asyncio.to_thread(policies.reload):
                continue
            if policies.error:
                log.error("policy.kept", error=policies.error)
            else:
                log.info("policy.changed", digest=policies.current.digest)

    # --- cancels ------------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        while True:
            with suppress(RedisError, OSError):
                await self._listen_once(self._subscriptions)
            await asyncio.sleep(RETRY_SECONDS)

    async def _listen_once(self, redis: Redis) -> None:
        pubsub = redis.pubsub()
        try:
            await pubsub.subscribe(keys.control(self._settings.agent_id))
            pinged = False
            while True:
                message = await pubsub.get_message(timeout=IDLE_SECONDS)
                if message is None:
                    if pinged:
                        return
                    pinged = True
                    await pubsub.ping()
                    continue
                pinged = False
                if message["type"] == "subscribe":
                    # What was published while nobody listened stands in the cancel keys.
                    await self._read_cancels()
                elif message["type"] == "message":
                    self._cancel(message["data"].decode("ascii", "replace"))
        finally:
            with suppress(RedisError, OSError):
                await pubsub.aclose()

    def _cancel(self, message: str) -> None:
        # The name in front only says whom to ask; what counts stands in the signed token.
        exec_id, _, token = message.partition(" ")
        execution = self._running.get(exec_id)
        if execution is not None:
            execution.cancel(token)

    async def _read_cancels(self) -> None:
        for exec_id, execution in list(self._running.items()):
            token = await self._context.redis.get(keys.cancel(self._settings.agent_id, exec_id))
            if token is not None:
                execution.cancel(token.decode("ascii", "replace"))
