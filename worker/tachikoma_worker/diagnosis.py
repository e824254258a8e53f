"""Checks of an agent's host for `tachikoma doctor worker`."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator

from tachikoma.diagnosis.findings import Finding
from tachikoma.diagnosis.host import check_folder, check_secret, check_units
from tachikoma.diagnosis.identity import check_identity
from tachikoma.diagnosis.redis import check_redis
from tachikoma.errors import ConfigurationError
from tachikoma.identity.open import open_identity
from tachikoma.policy.decide import PolicySet
from tachikoma_worker.cgroups.detect import detect
from tachikoma_worker.confinement.launch import PROGRAM
from tachikoma_worker.engine.descriptors import fitting_slots
from tachikoma_worker.settings import WorkerSettings

__all__ = ["diagnose"]

UNITS = ("tachikoma-spawner.service", "tachikoma-worker.service")


def diagnose(settings: WorkerSettings) -> Iterator[Finding]:
    """Check everything that a worker with these settings needs, as the user that runs it."""
    yield from check_identity(settings.identity, "TACHIKOMA_IDENTITY")
    if settings.redis_password_file is not None:
        yield from check_secret(settings.redis_password_file)
    yield from check_redis(lambda: settings.redis(open_identity(settings.identity)), clock=False)
    yield from check_folder(settings.data, "the journal and output that Redis does not have yet")
    yield from _check_spawner(settings)
    yield from _check_cgroups(settings)
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
