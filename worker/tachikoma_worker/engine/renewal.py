"""Renewal: an agent that joined gets each next certificate before the current one ends.

The agent authenticates the orchestrator by its own bundle, and itself by its certificate. An identity from another
source is renewed by that source.
"""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import grpc.aio
import structlog

from tachikoma.config.channels import proxy_options
from tachikoma.config.retry import Backoff
from tachikoma.errors import ConfigurationError, PermissionDenied, TachikomaError, Unauthenticated
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.exec.v1.remote_execution_pb2_grpc import RemoteExecutionStub
from tachikoma.identity.authority import issued_at, make_request, new_key
from tachikoma.identity.file_source import CHECK_SECONDS
from tachikoma.identity.files import finish_writing
from tachikoma.identity.join_token import Joined
from tachikoma.identity.svid import Svid, SvidSource
from tachikoma_worker.engine.certificates import CALL_SECONDS, check_certificate, save_identity, translate_error
from tachikoma_worker.engine.joining import REJOIN

__all__ = ["Renewal", "due"]

log = structlog.get_logger(__name__)

#: Part of its life that is left when a certificate is renewed: chosen at random, so that agents do not renew together.
LEFT = (0.45, 0.55)
#: First and longest delay between attempts to renew.
RETRY_SECONDS = (1.0, 60.0)
#: A delay between attempts is at most this part of the time that is left, and at least this many seconds.
RETRY_PART = 1 / 8
LEAST_RETRY_SECONDS = 0.1
#: Longest delay between two checks of a certificate that is not due: another process may have replaced it.
CHECK_AGAIN_SECONDS = 60.0


def due(svid: Svid, part: float) -> timedelta:
    """Return the time until a certificate is to be renewed; negative if it is overdue.

    Args:
        svid: the identity.
        part: part of its life that is left when it is to be renewed, from 0 to 1.
    """
    leaf = svid.chain[0]
    life = leaf.not_valid_after_utc - issued_at(leaf)
    return svid.not_after - life * part - datetime.now(UTC)


class Renewal:
    """Renews the identity in a folder while the worker runs."""

    def __init__(self, folder: Path, joined: Joined, identity: SvidSource) -> None:
        """Prepare the renewal.

        Args:
            folder: the folder of the identity.
            joined: where the identity is renewed.
            identity: the identity as the worker uses it, which reads the folder by itself.
        """
        self._folder = folder
        self._joined = joined
        self._identity = identity

    @staticmethod
    def prepare(place: str | Path | None) -> Joined | None:
        """Return where an identity is renewed, or None if its agent did not join.

        Call it before the identity is opened: it completes a write that a crash interrupted.

        Raises:
            ConfigurationError: the files cannot be used.
        """
        if not isinstance(place, Path):
            return None
        joined = Joined.load(place)
        if joined is not None:
            try:
                finish_writing(place)
            except OSError as error:
                raise ConfigurationError(f"cannot write the identity in {place}, to renew it: {error}") from error
        return joined

    async def run(self) -> None:
        """Renew for ever."""
        reported: Svid | None = None
        while True:
            svid = self._identity.current()
            if _left_seconds(svid) <= 0:
                if reported is not svid:
                    log.error("svid.ended", spiffe_id=str(svid.spiffe_id), remedy=REJOIN)
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
        while self._identity.current() is svid and (left := _left_seconds(svid)) > 0:
            try:
                new = await self._renew(svid)
            except (TachikomaError, OSError) as error:
                refused = isinstance(error, (Unauthenticated, PermissionDenied))
                log.warning("svid.not_renewed", reason=str(error), remedy=REJOIN if refused else "", left_s=left)
                await asyncio.sleep(min(backoff.advance(), max(left * RETRY_PART, LEAST_RETRY_SECONDS)))
                continue
            log.info("svid.renewed", spiffe_id=str(new.spiffe_id), until=new.not_after.isoformat())
            # Until the identity has read its files again.
            await asyncio.sleep(CHECK_SECONDS + 0.1)

    async def _renew(self, svid: Svid) -> Svid:
        """Get and store one new certificate.

        Raises:
            TachikomaError: the orchestrator refuses, or cannot be reached.
            OSError: the files cannot be written.
        """
        # The agent may have joined again since, at another orchestrator.
        self._joined = Joined.load(self._folder) or self._joined
        key = new_key()
        credentials = grpc.ssl_channel_credentials(svid.bundle.pem, svid.key_pem, svid.certificate_pem)
        options = [
            *proxy_options(self._joined.address),
            ("grpc.ssl_target_name_override", self._joined.server_name),
        ]
        message = pb.RenewAgentRequest(csr=make_request(key, svid.spiffe_id))
        async with grpc.aio.secure_channel(self._joined.address, credentials, options) as channel:
            try:
                answer = await RemoteExecutionStub(channel).RenewAgent(message, timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                raise translate_error(error, self._joined.address) from None
        new = check_certificate(answer.certificate_chain, key, answer.bundle, svid.spiffe_id)
        self._joined = self._joined.model_copy(update={"address": answer.renew_address})
        await asyncio.to_thread(save_identity, self._folder, new, self._joined)
        return new


def _left_seconds(svid: Svid) -> float:
    """Return the time until a certificate ends."""
    return (svid.not_after - datetime.now(UTC)).total_seconds()
