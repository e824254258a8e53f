"""Checks of a part's own identity."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from tachikoma.diagnosis.findings import Finding
from tachikoma.diagnosis.host import check_secret
from tachikoma.errors import ConfigurationError
from tachikoma.identity.files import KEY_FILE
from tachikoma.identity.open import open_identity
from tachikoma.identity.spiffe import InvalidIdentity
from tachikoma.identity.svid import Svid

__all__ = ["OVERDUE", "check_identity", "is_overdue"]

#: Share of a certificate's lifetime. With less left, the certificate was not renewed when it should have been.
OVERDUE = 1 / 4


def is_overdue(svid: Svid) -> bool:
    """Return whether an identity should have been renewed before now."""
    lifetime = svid.not_after - max(certificate.not_valid_before_utc for certificate in svid.chain)
    return svid.not_after - datetime.now(UTC) < lifetime * OVERDUE


def check_identity(place: str | Path | None, setting: str) -> Iterator[Finding]:
    """Check that an identity can be used, is renewed, and that its key is private.

    Args:
        place: a folder, or `unix:///path` of the Workload API; None for the one that the environment names.
        setting: the setting that names it.
    """
    renew = "renew it: see docs/identity.md, or the log of the program that renews it"
    try:
        source = open_identity(place)
    except ConfigurationError as error:
        yield Finding(where=setting, what=str(error), remedy=renew)
        return
    try:
        svid = source.current()
        svid.verify()
    except InvalidIdentity as error:
        yield Finding(where=source.place, what=f"the identity cannot be used: {error}", remedy=renew)
        return
    finally:
        source.close()
    if is_overdue(svid):
        yield Finding(
            where=source.place,
            what=f"the certificate of {svid.spiffe_id} ends at {svid.not_after:%Y-%m-%d %H:%M:%S} UTC and should have "
            "been renewed",
            remedy=renew,
        )
    if isinstance(place, Path):
        yield from check_secret(place / KEY_FILE)
