"""Becoming an agent with a token, and staying one: the first certificate, and each next one before the last ends.

The agent makes its own keys, which leave it never. To join, it knows the orchestrator by the root in its token, before
it says anything; to renew, by its own bundle, and shows its certificate. Only what joined renews: other identities are
renewed by whoever gave them.
"""

from __future__ import annotations

import asyncio
import os
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import grpc.aio
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from tachikoma.client.rpc_errors import error_from_rpc
from tachikoma.errors import (
    ConfigurationError,
    PermissionDenied,
    ServerError,
    TachikomaError,
    Unauthenticated,
    Unavailable,
)
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.exec.v1.remote_execution_pb2_grpc import JoiningStub, RemoteExecutionStub
from tachikoma.identity.authority import issued_at, make_request, new_key, private_pem
from tachikoma.identity.files import finish_writing, write_identity, write_private
from tachikoma.identity.join_token import Joined, JoinToken, agent_of
from tachikoma.identity.spiffe import InvalidIdentity, SpiffeId, id_of
from tachikoma.identity.svid import CERTIFICATE_FILE, CHECK_SECONDS, Svid, SvidSource

__all__ = ["PASSWORD_FILE", "REJOIN", "Renewal", "due", "join"]

log = structlog.get_logger(__name__)

#: The Redis password of an agent that joined, in the folder of its identity, where nobody says otherwise.
PASSWORD_FILE = "redis_password"  # noqa: S105 (its name)
#: How long one call may take, the connection included.
CALL_SECONDS = 20.0
#: A certificate is renewed when so much of its life is left; not of all agents at once.
LEFT = (0.45, 0.55)
#: Between attempts to renew, at first and at the most; never more than an eighth of the time that is left.
RETRY_SECONDS = (1.0, 60.0)
#: Between looks at a certificate that is not due, at the most, since another process may have put a new one there.
LOOK_SECONDS = 60.0
#: What to do when an identity cannot be renewed any more.
REJOIN = "make a token with `tachikoma agents enroll`, and join with it: `tachikoma worker join`"


def _translate(error: grpc.aio.AioRpcError, address: str) -> TachikomaError:
    trailing = [(str(key), value) for key, value in error.trailing_metadata() or ()]
    told = error_from_rpc(error.code(), error.details() or "", trailing)
    if type(told) is Unavailable and not told.metadata:
        return Unavailable(f"cannot reach the orchestrator at {address}, or it is not the right one: {error.details()}")
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Unavailable(f"the orchestrator at {address} did not answer in {CALL_SECONDS:g} s")
    return told


def _checked(chain_pem: bytes, key: ec.EllipticCurvePrivateKey, bundle_pem: bytes, wanted: SpiffeId) -> Svid:
    """The identity that was given.

    Raises:
        ServerError: it is not the one that was asked for, or cannot be used.
    """
    try:
        svid = Svid.load(chain_pem, private_pem(key), bundle_pem)
        if svid.spiffe_id != wanted:
            raise InvalidIdentity(f"it is of {svid.spiffe_id}")
        svid.verify()
    except InvalidIdentity as error:
        raise ServerError(
            f"the certificate for {wanted} that the orchestrator gave cannot be used: {error}; are both clocks right?"
        ) from None
    return svid


def _write(folder: Path, svid: Svid, joined: Joined) -> None:
    joined.save(folder)
    write_identity(folder, key_pem=svid.key_pem, certificate_pem=svid.certificate_pem, bundle_pem=svid.bundle.pem)


def _check_free(folder: Path, spiffe_id: SpiffeId) -> None:
    """See that a folder has nobody else's identity.

    Raises:
        ConfigurationError: it has.
    """
    try:
        found = id_of(x509.load_pem_x509_certificates((folder / CERTIFICATE_FILE).read_bytes())[0])
    except (OSError, ValueError):
        return
    if found != spiffe_id:
        raise ConfigurationError(f"{folder} has the identity of {found}; name another folder for {spiffe_id}")


async def join(token: JoinToken, folder: Path, password_file: Path) -> bool:
    """Join: the identity is in the folder then, and the Redis password in its file.

    Returns:
        Whether there is a Redis password.

    Raises:
        ConfigurationError: the files cannot be written.
        Unauthenticated: the token is not accepted.
        Unavailable: the orchestrator cannot be reached, or is not the one of the token.
        TachikomaError: the orchestrator's other answers.
    """
    # What can go wrong here goes wrong before the token is used.
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_free(folder, token.spiffe_id)
        finish_writing(folder)
        password_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for place in (folder, password_file.parent):
            if not os.access(place, os.W_OK | os.X_OK):
                raise PermissionError(f"{place} cannot be written")
    except OSError as error:
        raise ConfigurationError(f"cannot write the identity: {error}") from error
    key = new_key()
    credentials = grpc.ssl_channel_credentials(token.root_pem)
    options = [("grpc.ssl_target_name_override", token.server_name)]
    message = pb.JoinRequest(
        agent_id=agent_of(token.spiffe_id), secret=token.secret, csr=make_request(key, token.spiffe_id)
    )
    async with grpc.aio.secure_channel(token.address, credentials, options) as channel:
        try:
            answer = await JoiningStub(channel).Join(message, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise _translate(error, token.address) from None
    svid = _checked(answer.certificate_chain, key, answer.bundle, token.spiffe_id)
    try:
        if answer.redis_password:
            write_private(password_file, answer.redis_password.encode() + b"\n")
        _write(folder, svid, Joined(address=answer.renew_address, server_name=token.server_name))
    except OSError as error:
        raise ConfigurationError(f"cannot write the identity, and the token is used now: {error}") from error
    return bool(answer.redis_password)


def due(svid: Svid, part: float) -> timedelta:
    """How long until a certificate is to be renewed: when so large a part of its life is left."""
    leaf = svid.chain[0]
    life = leaf.not_valid_after_utc - issued_at(leaf)
    return svid.not_after - life * part - datetime.now(UTC)


class Renewal:
    """Renews the identity in a folder, for as long as the worker runs."""

    def __init__(self, folder: Path, joined: Joined, identity: SvidSource) -> None:
        self._folder = folder
        self._joined = joined
        self._identity = identity

    @staticmethod
    def prepare(place: str | Path | None) -> Joined | None:
        """See, before an identity is opened, whether its agent joined, and finish what a crash interrupted.

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
        ended: Svid | None = None
        while True:
            svid = self._identity.current()
            if svid.not_after <= datetime.now(UTC):
                if ended is not svid:
                    log.error("svid.ended", spiffe_id=str(svid.spiffe_id), remedy=REJOIN)
                ended = svid
                await asyncio.sleep(RETRY_SECONDS[0])
                continue
            wait = due(svid, random.uniform(*LEFT)).total_seconds()  # noqa: S311 (not for a secret)
            if wait > 0:
                await asyncio.sleep(min(wait, LOOK_SECONDS))
                continue
            await self._renew_until_done(svid)

    async def _renew_until_done(self, svid: Svid) -> None:
        """Try, until there is a new certificate or the old one has ended."""
        delay = RETRY_SECONDS[0]
        while self._identity.current() is svid and (left := (svid.not_after - datetime.now(UTC)).total_seconds()) > 0:
            try:
                new = await self._renew(svid)
            except (TachikomaError, OSError) as error:
                refused = isinstance(error, (Unauthenticated, PermissionDenied))
                log.warning("svid.not_renewed", reason=str(error), remedy=REJOIN if refused else "", left_s=left)
                await asyncio.sleep(min(delay, max(left / 8, 0.1)))
                delay = min(2 * delay, RETRY_SECONDS[1])
                continue
            log.info("svid.renewed", spiffe_id=str(new.spiffe_id), until=new.not_after.isoformat())
            # The source looks at its files that often.
            await asyncio.sleep(CHECK_SECONDS + 0.1)

    async def _renew(self, svid: Svid) -> Svid:
        # It may have joined anew, elsewhere.
        self._joined = Joined.load(self._folder) or self._joined
        key = new_key()
        credentials = grpc.ssl_channel_credentials(svid.bundle.pem, svid.key_pem, svid.certificate_pem)
        options = [("grpc.ssl_target_name_override", self._joined.server_name)]
        message = pb.RenewAgentRequest(csr=make_request(key, svid.spiffe_id))
        async with grpc.aio.secure_channel(self._joined.address, credentials, options) as channel:
            stub = RemoteExecutionStub(channel)
            try:
                answer = await stub.RenewAgent(message, timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                raise _translate(error, self._joined.address) from None
        new = _checked(answer.certificate_chain, key, answer.bundle, svid.spiffe_id)
        self._joined = self._joined.model_copy(update={"address": answer.renew_address})
        await asyncio.to_thread(_write, self._folder, new, self._joined)
        return new
