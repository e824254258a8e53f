"""The agent's description of itself: its heartbeat, and the warnings about its host."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import structlog

from tachikoma.identity.certificates import key_digest
from tachikoma.identity.spiffe import InvalidIdentity
from tachikoma.identity.svid import Svid
from tachikoma.redis import keys
from tachikoma.streams.heartbeat import MAX_HELD, MAX_ROOTS, Heartbeat, Trust
from tachikoma.vocabulary.clock import now_ms, to_ms
from tachikoma.vocabulary.formats import FORMATS
from tachikoma_worker import VERSION
from tachikoma_worker.cgroups.hierarchy import Hierarchy
from tachikoma_worker.confinement.account import user_name
from tachikoma_worker.confinement.isolation.abilities import Abilities
from tachikoma_worker.settings import WorkerSettings

__all__ = ["Run", "describe", "describe_trust", "host_warnings", "logged_warnings"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Run:
    """Facts of an agent that stay the same while its worker runs."""

    #: Id of the journal.
    boot: str
    #: Random id of this run of the worker.
    run: str
    #: Limitations of the host, for people.
    warnings: tuple[str, ...]
    #: Levels of isolation that the host can enforce.
    isolation: tuple[str, ...] = ()


def describe(
    settings: WorkerSettings, run: Run, svid: Svid, running: int, held: Sequence[str] | None, life: str = ""
) -> Heartbeat:
    """Return the heartbeat of this moment.

    Args:
        settings: those of the worker.
        run: facts of this run.
        svid: the agent's current identity.
        running: number of running executions.
        held: ids of the executions that the agent holds; None if that is not known.
        life: signed record of the latest life of Redis to which the agent has written its reports again.
    """
    return Heartbeat(
        boot=run.boot,
        run=run.run,
        version=VERSION,
        hostname=platform.node(),
        labels=settings.labels,
        running=running,
        slots=settings.slots,
        load=psutil.getloadavg()[0],
        memory_used=psutil.virtual_memory().percent / 100,
        disk_used=psutil.disk_usage(str(settings.data)).percent / 100,
        warnings=run.warnings,
        isolation=run.isolation,
        trust=describe_trust(svid),
        executions=None if held is None or len(held) > MAX_HELD else tuple(held),
        sent_ms=now_ms(),
        formats=dict(FORMATS),
        queues=keys.QUEUE_LANES,
        life=life,
    )


def describe_trust(svid: Svid) -> Trust:
    """Return the identity and the bundle of an agent, for `tachikoma identity check`."""
    try:
        root = svid.bundle.root_of(svid.chain[0], list(svid.chain[1:]))
    except InvalidIdentity:
        root = ""
    return Trust(
        spiffe_id=str(svid.spiffe_id),
        expires_ms=to_ms(svid.not_after),
        root=root,
        bundle=tuple(key_digest(certificate) for certificate in svid.bundle.roots[:MAX_ROOTS]),
    )


def logged_warnings(cgroups: Hierarchy, spawner_uid: int, abilities: Abilities) -> tuple[str, ...]:
    """Log the limits and the isolation that this host cannot enforce, and return them as texts for people."""
    warnings = (*host_warnings(cgroups, spawner_uid), *abilities.warnings())
    for warning in warnings:
        log.warning("agent.warning", warning=warning)
    return warnings


def host_warnings(cgroups: Hierarchy, spawner_uid: int) -> tuple[str, ...]:
    """Return a text for people for each limit and protection that this host cannot enforce."""
    found: Sequence[str] = cgroups.warnings
    if spawner_uid == 0:
        return tuple(found)
    name = user_name(spawner_uid)
    return (
        *found,
        f"commands run as {name} only, with its rights: the spawner is not root",
        f"programs that belong to {name} are executed as if root had put them there",
    )
