"""Checks of the host of an orchestrator, submitter, beat or Flower for `tachikoma doctor`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tachikoma.diagnosis.findings import Finding
from tachikoma.diagnosis.host import check_folder, check_open_files, check_secret, check_units
from tachikoma.diagnosis.identity import check_identity
from tachikoma.diagnosis.redis import check_redis
from tachikoma.errors import ConfigurationError, TachikomaError
from tachikoma.identity.authority import KEY_FILE, CertificateAuthority
from tachikoma.identity.open import open_identity
from tachikoma.policy.decide import PolicySet
from tachikoma.redis.access import RedisAccess, RedisSettings
from tachikoma.redis.users import BEAT, CHECK, FLOWER
from tachikoma.vocabulary.types import IdentityPlace
from tachikoma_orchestrator.commands.beat import BeatSettings
from tachikoma_orchestrator.commands.flower import FlowerSettings, certificate_of, read_users
from tachikoma_orchestrator.commands.health import check_health
from tachikoma_orchestrator.commands.redis_check.everywhere import examine_all
from tachikoma_orchestrator.processes.settings import OrchestratorSettings, SubmitterSettings
from tachikoma_orchestrator.schedules.sources import open_schedules

__all__ = [
    "check_authority",
    "diagnose_beat",
    "diagnose_flower",
    "diagnose_orchestrator",
    "diagnose_server",
    "diagnose_submitter",
]

#: Open files of an orchestrator besides its connections: those to Redis, logs, recordings, files of settings.
RESERVED_FILES = 512


def diagnose_server(settings: OrchestratorSettings) -> Iterator[Finding]:
    """Compare the Redis of an orchestrator with the requirements, as `tachikoma redis check` does.

    The password of the user `check` is looked for beside the orchestrator's, where `tachikoma redis acl` puts it.

    Raises:
        ConfigurationError: there is no password that this user may read, or the check may not read Redis.
        Unavailable: Redis cannot be reached.
    """
    own = settings.redis_password_file
    if own is None or not os.access(own.parent / CHECK, os.R_OK):
        place = "TACHIKOMA_REDIS_PASSWORD_FILE" if own is None else str(own)
        raise ConfigurationError(f"this user can read no password {CHECK!r} beside {place}; run: tachikoma redis check")
    changed = {"redis_user": CHECK, "redis_password_file": own.parent / CHECK}
    identity = open_identity(settings.identity)
    try:
        access = RedisAccess.of(settings.model_copy(update=changed), identity=identity, user=CHECK)
        report = asyncio.run(examine_all(access, passwords=None, durable=settings.audit_durable))
    finally:
        identity.close()
    for finding in report.findings:
        yield finding.model_copy(update={"where": f"Redis: {finding.where}"})


def diagnose_orchestrator(settings: OrchestratorSettings) -> Iterator[Finding]:
    """Check everything that an orchestrator with these settings needs, as the user that runs it."""
    yield from _check_both(settings)
    if settings.ca is not None:
        yield from check_secret(settings.ca / KEY_FILE)
        yield from check_authority(settings.ca)
    if settings.enroller_password_file is not None:
        yield from check_secret(settings.enroller_password_file)
        yield from check_redis(lambda: _present(settings.enroller(open_identity(settings.identity))), clock=False)
    if settings.audit_log is not None:
        yield from check_folder(settings.audit_log.parent, "the audit log")
    try:
        check_health(settings)
    except TachikomaError as error:
        yield Finding(
            where="TACHIKOMA_LISTEN",
            what=f"the orchestrator does not serve: {error}",
            remedy="start it, or look into its log: journalctl -u tachikoma-orchestrator",
        )
    yield from check_open_files("TACHIKOMA_CONNECTIONS", settings.connections, RESERVED_FILES)
    yield from check_units(
        "tachikoma-orchestrator.service",
        companions=("tachikoma-redis.service", "tachikoma-renewal.timer", "tachikoma-renewal.service"),
    )


def diagnose_submitter(settings: SubmitterSettings) -> Iterator[Finding]:
    """Check everything that a submitter with these settings needs, as the user that runs it."""
    yield from _check_both(settings)
    if settings.submitter_password_file is not None:
        yield from check_secret(settings.submitter_password_file)
    yield from check_redis(lambda: settings.celery(open_identity(settings.identity)), clock=False)
    yield from check_units("tachikoma-submitter.service")


def diagnose_beat(settings: BeatSettings) -> Iterator[Finding]:
    """Check everything that beat with these settings needs, as the user that runs it."""
    yield from _check_access(settings, settings.identity, BEAT)
    yield from _check_schedules(settings.schedules)
    yield from check_units("tachikoma-beat.service")


def diagnose_flower(settings: FlowerSettings) -> Iterator[Finding]:
    """Check everything that Flower with these settings needs, as the user that runs it."""
    yield from _check_access(settings, settings.identity, FLOWER)
    yield from check_secret(settings.flower_users)
    yield from _loads("TACHIKOMA_FLOWER_USERS", lambda: read_users(settings.flower_users), "write user:password lines")
    yield from _loads("TACHIKOMA_FLOWER_CERTIFICATE", lambda: certificate_of(settings), "set both or none")
    if settings.flower_key is not None:
        yield from check_secret(settings.flower_key)
    yield from check_units("tachikoma-flower.service")


def _check_access(settings: RedisSettings, identity: IdentityPlace | None, user: str) -> Iterator[Finding]:
    """Check the identity and the access to Redis of a part that needs an identity for TLS only."""
    if identity is not None:
        yield from check_identity(identity, "TACHIKOMA_IDENTITY")
    if settings.redis_password_file is not None:
        yield from check_secret(settings.redis_password_file)

    def access() -> RedisAccess:
        return RedisAccess.of(settings, identity=None if identity is None else open_identity(identity), user=user)

    yield from check_redis(access, clock=False)


def _check_both(settings: OrchestratorSettings) -> Iterator[Finding]:
    yield from check_identity(settings.identity, "TACHIKOMA_IDENTITY")
    if settings.redis_password_file is not None:
        yield from check_secret(settings.redis_password_file)
    yield from check_redis(lambda: settings.redis(open_identity(settings.identity)))
    yield from _loads("TACHIKOMA_POLICY", lambda: PolicySet.load(settings.policy), "run: tachikoma policy check")
    if settings.schedules:
        yield from _check_schedules(settings.schedules)
    if settings.audit_key is not None:
        yield from check_secret(settings.audit_key)


def check_authority(folder: Path) -> Iterator[Finding]:
    """Check that a certificate authority can be used, and is replaced in time.

    Args:
        folder: its folder.
    """
    try:
        authority = CertificateAuthority.load(folder)
    except ConfigurationError as error:
        remedy = "restore its folder, or replace the authority: see docs/tasks.md"
        yield Finding(where="TACHIKOMA_CA", what=str(error), remedy=remedy)
        return
    if authority.ends_soon:
        yield Finding(
            where="TACHIKOMA_CA",
            what=f"the authority in {folder} ends at {authority.not_after:%Y-%m-%d}, and all certificates with it",
            remedy="put the root back to /etc/tachikoma/root-ca and run `tachikoma setup`: see docs/tasks.md, "
            "'Replace the authority'",
        )


def _check_schedules(schedules: str) -> Iterator[Finding]:
    yield from _loads("TACHIKOMA_SCHEDULES", lambda: open_schedules(schedules), "run: tachikoma schedule check")


def _loads(setting: str, load: Callable[[], object], remedy: str) -> Iterator[Finding]:
    try:
        load()
    except ConfigurationError as error:
        yield Finding(where=setting, what=str(error), remedy=f"{remedy}, and correct the file")


def _present(access: RedisAccess | None) -> RedisAccess:
    assert access is not None
    return access
