"""Renewal of an identity before it expires: its time, its retries, and a lock for the identity's files.

The class here waits and repeats. Its subclasses request the next certificate from its issuer.
"""

from __future__ import annotations

import asyncio
import fcntl
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tachikoma.config.logs import get_logger
from tachikoma.config.retry import Backoff
from tachikoma.errors import PermissionDenied, TachikomaError, Unauthenticated
from tachikoma.identity.authority import issued_at
from tachikoma.identity.file_source import CHECK_SECONDS
from tachikoma.identity.svid import Svid, SvidSource

__all__ = ["HALF", "IdentityRenewal", "due", "left_seconds", "renewal_lock"]

log = get_logger(__name__)

#: Part of its life that is left when a certificate is renewed: chosen at random, so that agents do not renew together.
LEFT = (0.45, 0.55)
#: The same for an identity that is renewed alone.
HALF = 0.5
#: First and longest delay between attempts to renew.
RETRY_SECONDS = (1.0, 60.0)
#: A delay between attempts is at most this part of the time that is left, and at least this many seconds.
RETRY_PART = 1 / 8
LEAST_RETRY_SECONDS = 0.1
#: Longest delay between two checks of a certificate that is not due: another process may have replaced it.
CHECK_AGAIN_SECONDS = 60.0
#: Name of the file in an identity's folder that is locked while the identity is renewed.
LOCK_FILE = ".renewal.lock"


def due(svid: Svid, part: float) -> timedelta:
    """Return the time until a certificate is to be renewed; negative if it is overdue.

    Args:
        svid: the identity.
        part: part of its life that is left when it is to be renewed, from 0 to 1.
    """
    leaf = svid.chain[0]
    life = leaf.not_valid_after_utc - issued_at(leaf)
    return svid.not_after - life * part - datetime.now(UTC)


def left_seconds(svid: Svid) -> float:
    """Return the time until a certificate ends."""
    return (svid.not_after - datetime.now(UTC)).total_seconds()


@contextmanager
def renewal_lock(folder: Path) -> Iterator[bool]:
    """Keep other processes from renewing an identity while the block runs (flock(2)).

    Yields:
        True if this process may renew it; False if another one does so now.

    Raises:
        OSError: the folder cannot be written.
    """
    with (folder / LOCK_FILE).open("a", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


class IdentityRenewal(ABC):
    """Renews one identity while a process runs."""

    #: What to do about an identity that cannot be renewed any more, for people.
    remedy = ""

    def __init__(self, identity: SvidSource) -> None:
        """Prepare the renewal of an identity that reads its files by itself."""
        self._identity = identity

    @abstractmethod
    async def _renew(self, svid: Svid) -> Svid:
        """Get and store one new certificate.

        Raises:
            TachikomaError: the authority refuses, or cannot be reached.
            OSError: the files cannot be written.
        """

    async def run(self) -> None:
        """Renew the identity whenever it is due, until cancelled."""
        reported: Svid | None = None
        while True:
            svid = self._identity.current()
            if left_seconds(svid) <= 0:
                if reported is not svid:
                    log.error("svid.ended", spiffe_id=str(svid.spiffe_id), remedy=self.remedy)
                reported = svid
                await asyncio.sleep(RETRY_SECONDS[0])
                continue
            wait_seconds = due(svid, random.uniform(*LEFT)).total_seconds()  # noqa: S311 (not for a secret)
            if wait_seconds > 0:
                await asyncio.sleep(min(wait_seconds, CHECK_AGAIN_SECONDS))
                continue
            await self._renew_until_done(svid)

    async def _renew_until_done(self, svid: Svid) -> None:
        """Try until there is a new certificate, or the current one has ended."""
        backoff = Backoff(*RETRY_SECONDS)
        while self._identity.current() is svid and (left := left_seconds(svid)) > 0:
            try:
                new = await self._renew(svid)
            except (TachikomaError, OSError) as error:
                refused = isinstance(error, (Unauthenticated, PermissionDenied))
                remedy = self.remedy if refused else ""
                log.warning("svid.not_renewed", reason=str(error), remedy=remedy, left_s=left)
                await asyncio.sleep(min(backoff.advance(), max(left * RETRY_PART, LEAST_RETRY_SECONDS)))
                continue
            log.info("svid.renewed", spiffe_id=str(new.spiffe_id), until=new.not_after.isoformat())
            # Until the identity has read its files again.
            await asyncio.sleep(CHECK_SECONDS + 0.1)
