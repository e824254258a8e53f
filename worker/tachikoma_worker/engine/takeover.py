"""Take-over of executions that an earlier worker left: continue them, or kill what is left and report them as lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import structlog

from tachikoma.vocabulary.limits import capability_mask
from tachikoma_worker.cgroups.detect import detect
from tachikoma_worker.cgroups.hierarchy import Hierarchy
from tachikoma_worker.confinement.protocol import Held, SpawnerGone, SpawnFailed
from tachikoma_worker.confinement.spawner import Spawner
from tachikoma_worker.engine.folder_lock import FolderLock
from tachikoma_worker.execution.context import Context
from tachikoma_worker.execution.journal import Unfinished
from tachikoma_worker.execution.verdict import describe
from tachikoma_worker.output.spool import Spool, SpoolError
from tachikoma_worker.settings import WorkerSettings

__all__ = [
    "GivenUp",
    "Resumable",
    "connect_spawner",
    "find_spool",
    "lost_reason",
    "sweep",
    "sweep_all",
    "sweep_execution",
]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Resumable:
    """An unfinished execution that can be continued from its spool."""

    unfinished: Unfinished
    spool: Spool
    #: The command, if the spawner holds it.
    held: Held | None


@dataclass(frozen=True, slots=True)
class GivenUp:
    """An unfinished execution that cannot be continued."""

    unfinished: Unfinished
    #: The reason why it cannot be continued, for the log.
    reason: str
    #: Whether its command was still running.
    was_running: bool


def find_spool(context: Context, unfinished: Unfinished, held: Mapping[str, Held]) -> Resumable | GivenUp:
    """Return whether an unfinished execution can be continued, and the spool to continue with.

    Args:
        context: the agent.
        unfinished: the execution.
        held: the commands that the spawner holds, by execution.
    """
    command = held.get(unfinished.exec_id)
    try:
        spool = Spool.open(context.spools, unfinished.exec_id, max_bytes=context.settings.spool_bytes)
        if spool.start.order_sha256 == unfinished.order_sha256:
            return Resumable(unfinished, spool, command)
        spool.close()
        reason = "its spool is of another order"
    except SpoolError as error:
        reason = str(error)
    except Exception as error:
        # No spool of one execution, however damaged, may keep the others from their endings.
        log.exception("spool.not_opened", id=unfinished.exec_id)
        reason = describe(error)
    return GivenUp(unfinished, reason, command is not None and command.exit is None)


def lost_reason(given_up: GivenUp) -> str:
    """Return the error text in the receipt of an execution that cannot be continued."""
    why = "the agent's worker was killed before the command's end was known"
    return f"{why}; the command was still running and was killed" if given_up.was_running else why


async def sweep_execution(spawner: Spawner, cgroups: Hierarchy, name: str, held: Held | None) -> None:
    """Kill and remove everything that is left of one execution that no worker continues.

    Args:
        spawner: the spawner.
        cgroups: the place of its cgroup.
        name: the execution.
        held: the command, if the spawner holds it.
    """
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
    except Exception:
        # One leftover must not keep the other executions from their endings.
        log.exception("leftover.not_removed", id=name)
        return
    if survivors or not removed:
        log.warning("leftover.not_removed", id=name, pids=survivors)


async def sweep_all(spawner: Spawner, cgroups: Hierarchy, names: Iterable[str], held: Mapping[str, Held]) -> None:
    """Kill and remove everything that is left of several executions; see `sweep_execution`."""
    for name in sorted(names):
        await sweep_execution(spawner, cgroups, name, held.get(name))


def connect_spawner(settings: WorkerSettings) -> Spawner:
    """Connect to the spawner of a worker's settings, or start the worker's own.

    Raises:
        ConfigurationError: it cannot be reached or started.
    """
    path = settings.spawner or settings.data / "spawner.sock"
    return Spawner.connect(path, capability_mask(settings.capabilities))


async def sweep(settings: WorkerSettings) -> None:
    """Kill and remove what a killed worker left: its commands, its spawner and its cgroups.

    Raises:
        ConfigurationError: the worker still runs, or the spawner cannot be reached.
    """
    lock = FolderLock.acquire(settings.data)
    try:
        await _sweep(settings)
    finally:
        lock.release()


async def _sweep(settings: WorkerSettings) -> None:
    """Run `sweep` in a locked data folder."""
    cgroups = detect(settings.agent_id, name=settings.cgroup_name, where=settings.cgroup)
    spawner = connect_spawner(settings)
    spawner.attach()
    held = {item.name: item for item in await spawner.held()}
    await sweep_all(spawner, cgroups, {*cgroups.leftovers(), *held}, held)
    await spawner.stop(anyway=settings.spawner is None)
    cgroups.close()
