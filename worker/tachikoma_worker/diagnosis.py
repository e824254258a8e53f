"""Checks of an agent's host for `tachikoma doctor worker`."""

from __future__ import annotations

import asyncio
import os
import resource
import stat
from collections.abc import Collection, Iterator
from importlib.metadata import version
from pathlib import Path

from tachikoma.client.diagnosis import diagnose as diagnose_connection
from tachikoma.diagnosis.findings import Finding
from tachikoma.diagnosis.host import check_folder, check_secret, check_units
from tachikoma.diagnosis.identity import check_identity
from tachikoma.diagnosis.redis import check_redis
from tachikoma.errors import ConfigurationError, Unavailable
from tachikoma.identity.join_token import Joined
from tachikoma.identity.open import open_identity
from tachikoma.identity.spiffe import InvalidIdentity
from tachikoma.policy.decide import PolicySet
from tachikoma_worker.cgroups.detect import detect
from tachikoma_worker.confinement.launch import PROGRAM
from tachikoma_worker.engine.descriptors import fitting_slots
from tachikoma_worker.engine.lease import read_lease
from tachikoma_worker.settings import WorkerSettings

__all__ = ["diagnose"]

UNITS = ("tachikoma-spawner.service", "tachikoma-worker.service")


def diagnose(settings: WorkerSettings) -> Iterator[Finding]:
    """Check everything that a worker with these settings needs, as the user that runs it."""
    yield from check_identity(settings.identity, "TACHIKOMA_IDENTITY")
    if settings.redis_password_file is not None:
        yield from check_secret(settings.redis_password_file)
    yield from check_redis(lambda: settings.redis(open_identity(settings.identity)), clock=False)
    cgroups = tuple(_check_cgroups(settings))
    yield from cgroups
    yield from _check_agent(settings, known={finding.what for finding in cgroups})
    yield from _check_renewal(settings)
    yield from check_folder(settings.data, "the journal and output that Redis does not have yet")
    yield from _check_spawner(settings)
    yield from _check_descriptors(settings)
    if settings.local_policy is not None:
        try:
            PolicySet.load(settings.local_policy)
        except ConfigurationError as error:
            yield Finding(
                where="TACHIKOMA_LOCAL_POLICY",
                what=str(error),
                remedy="run: tachikoma policy check, and correct the file",
            )
    yield from check_units(*UNITS)


def _check_agent(settings: WorkerSettings, known: Collection[str] = ()) -> Iterator[Finding]:
    """Check the running worker by its heartbeat: only the worker can ask its spawner what the host can enforce.

    Args:
        settings: the worker's.
        known: warnings that are findings already.
    """
    where = f"agent {settings.agent_id}"
    try:
        heartbeat = asyncio.run(read_lease(settings))
    except Unavailable as error:
        if error.metadata.get("dependency") == "redis":
            # The check of Redis has named it.
            return
        yield Finding(
            where=where,
            what=f"no worker is online here: {error}",
            remedy="start it, or look into its log: journalctl -u tachikoma-worker",
        )
        return
    except ConfigurationError:
        # The checks of identity and Redis have named it.
        return
    if heartbeat.version != (installed := version("tachikoma-exec")):
        yield Finding(
            where="versions",
            what=f"the worker runs version {heartbeat.version}, and {installed} is installed",
            remedy="run: systemctl restart tachikoma-worker; commands keep running",
        )
    for warning in (warning for warning in heartbeat.warnings if warning not in known):
        yield Finding(where="spawner", what=warning, remedy="orders that need it are refused; see docs/isolation.md")
    if settings.isolation not in heartbeat.isolation:
        yield Finding(
            where="TACHIKOMA_ISOLATION",
            what=f"this host cannot enforce {settings.isolation}, so every order is refused",
            remedy="give the spawner what the warnings name (docs/isolation.md), or set a lower level",
        )


def _check_renewal(settings: WorkerSettings) -> Iterator[Finding]:
    """Check that an agent that joined reaches the orchestrator that renews its certificate."""
    if not isinstance(settings.identity, Path):
        return
    try:
        joined = Joined.load(settings.identity)
    except ConfigurationError as error:
        yield Finding(where=str(settings.identity), what=str(error), remedy="join again: docs/identity.md")
        return
    if joined is None:
        return
    try:
        source = open_identity(settings.identity)
        try:
            svid = source.current()
        finally:
            source.close()
    except (ConfigurationError, InvalidIdentity):
        # The check of the identity has named it.
        return
    trouble = diagnose_connection(
        joined.address, joined.server_name, svid.bundle.pem, svid.certificate_pem, svid.key_pem
    )
    if trouble is not None:
        yield Finding(
            where=joined.address,
            what=f"the orchestrator that renews the certificate cannot be used: {trouble.text}",
            remedy="check address (TACHIKOMA_RENEW_ADDRESS of the orchestrator) and firewall; "
            "on its host run: sudo tachikoma doctor orchestrator",
        )


def _check_spawner(settings: WorkerSettings) -> Iterator[Finding]:
    if settings.spawner is None:
        if not os.access(PROGRAM, os.X_OK):
            yield Finding(
                where=str(PROGRAM),
                what="the spawner is not there, so no command can run",
                remedy="install a C compiler; pip install --no-cache-dir --force-reinstall --no-deps tachikoma-exec",
            )
        return
    try:
        is_socket = stat.S_ISSOCK(settings.spawner.stat().st_mode)
    except OSError:
        is_socket = False
    if not is_socket:
        yield Finding(
            where="TACHIKOMA_SPAWNER",
            what=f"there is no spawner at {settings.spawner}, so no command can run",
            remedy="run: systemctl start tachikoma-spawner",
        )


def _check_cgroups(settings: WorkerSettings) -> Iterator[Finding]:
    found = detect(settings.agent_id, name=settings.cgroup_name, where=settings.cgroup)
    for warning in found.warnings:
        yield Finding(
            where="cgroups",
            what=warning,
            remedy="orders that need it are refused; see docs/deployment.md for the units",
        )


def _check_descriptors(settings: WorkerSettings) -> Iterator[Finding]:
    fitting = fitting_slots(settings.slots)
    if fitting < settings.slots:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        yield Finding(
            where="TACHIKOMA_SLOTS",
            what=f"a limit of {hard} open files is enough for {fitting} of {settings.slots} slots",
            remedy="raise LimitNOFILE= of the unit, or set fewer slots",
        )
