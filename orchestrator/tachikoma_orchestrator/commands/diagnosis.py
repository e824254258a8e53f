"""Checks of the host of an orchestrator or submitter for `tachikoma doctor`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tachikoma.diagnosis.findings import Finding
from tachikoma.diagnosis.host import check_folder, check_secret, check_units
from tachikoma.diagnosis.identity import check_identity
from tachikoma.diagnosis.redis import check_redis
from tachikoma.errors import ConfigurationError, TachikomaError
from tachikoma.identity.authority import KEY_FILE, CertificateAuthority
from tachikoma.identity.open import open_identity
from tachikoma.policy.decide import PolicySet
from tachikoma.redis.access import RedisAccess
from tachikoma_orchestrator.commands.health import check_health
from tachikoma_orchestrator.processes.settings import OrchestratorSettings, SubmitterSettings
from tachikoma_orchestrator.schedules.sources import open_schedules

__all__ = ["check_authority", "diagnose_orchestrator", "diagnose_submitter"]


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
    yield from check_units("tachikoma-orchestrator.service")


def diagnose_submitter(settings: SubmitterSettings) -> Iterator[Finding]:
    """Check everything that a submitter with these settings needs, as the user that runs it."""
    yield from _check_both(settings)
    if settings.submitter_password_file is not None:
        yield from check_secret(settings.submitter_password_file)
    yield from check_redis(lambda: settings.celery(open_identity(settings.identity)), clock=False)
    yield from check_units("tachikoma-submitter.service")


def _check_both(settings: OrchestratorSettings) -> Iterator[Finding]:
    yield from check_identity(settings.identity, "TACHIKOMA_IDENTITY")
    if settings.redis_password_file is not None:
        yield from check_secret(settings.redis_password_file)
    yield from check_redis(lambda: settings.redis(open_identity(settings.identity)))
    yield from _loads("TACHIKOMA_POLICY", lambda: PolicySet.load(settings.policy), "run: tachikoma policy check")
    if settings.schedules:
        yield from _loads(
            "TACHIKOMA_SCHEDULES", lambda: open_schedules(settings.schedules), "run: tachikoma schedule check"
        )
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


def _loads(setting: str, load: Callable[[], object], remedy: str) -> Iterator[Finding]:
    try:
        load()
    except ConfigurationError as error:
        yield Finding(where=setting, what=str(error), remedy=f"{remedy}, and correct the file")


def _present(access: RedisAccess | None) -> RedisAccess:
    assert access is not None
    return access
