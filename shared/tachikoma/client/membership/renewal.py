"""Renewal: a member that joined with a token gets each next certificate before the current one ends.

The member authenticates the orchestrator by its own bundle, and itself by its certificate. An identity from another
source is renewed by that source.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import grpc.aio

from tachikoma.client.membership.certificates import CALL_SECONDS, check_certificate, save_identity, translate_error
from tachikoma.client.membership.joining import rejoin
from tachikoma.config.channels import proxy_options, target_of
from tachikoma.config.logs import get_logger
from tachikoma.errors import ConfigurationError, TachikomaError
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.exec.v1.remote_execution_pb2_grpc import RemoteExecutionStub
from tachikoma.identity.authority import make_request, new_key
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.files import finish_writing
from tachikoma.identity.join_token import Joined
from tachikoma.identity.renewal import HALF, IdentityRenewal, due, renewal_lock
from tachikoma.identity.spiffe import is_agent
from tachikoma.identity.svid import Svid, SvidSource

__all__ = ["Renewal", "renew_if_due", "renew_in_passing", "renew_now"]

log = get_logger(__name__)


class Renewal(IdentityRenewal):
    """Renews the identity in a folder while the process runs that uses it."""

    def __init__(self, folder: Path, joined: Joined, identity: SvidSource) -> None:
        """Prepare the renewal.

        Args:
            folder: the folder of the identity.
            joined: where the identity is renewed.
            identity: the identity as the process uses it, which reads the folder by itself.
        """
        super().__init__(identity)
        self.remedy = rejoin(identity.current().spiffe_id)
        self._folder = folder
        self._joined = joined

    @staticmethod
    def prepare(place: str | Path | None) -> Joined | None:
        """Return the place at which an identity is renewed, or None if its owner did not join.

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

    async def _renew(self, svid: Svid) -> Svid:
        # The owner may have joined again since, at another orchestrator.
        self._joined = Joined.load(self._folder) or self._joined
        new, self._joined = await renew_now(self._folder, self._joined, svid)
        return new


async def renew_now(folder: Path, joined: Joined, svid: Svid) -> tuple[Svid, Joined]:
    """Get one new certificate from the orchestrator and store it.

    Args:
        folder: the folder of the identity.
        joined: where the identity is renewed.
        svid: the current identity.

    Returns:
        The new identity, and where it is renewed next time.

    Raises:
        TachikomaError: the orchestrator refuses, or cannot be reached.
        OSError: the files cannot be written.
    """
    key = new_key()
    csr = make_request(key, svid.spiffe_id)
    credentials = grpc.ssl_channel_credentials(svid.bundle.pem, svid.key_pem, svid.certificate_pem)
    options = [*proxy_options(joined.address), ("grpc.ssl_target_name_override", joined.server_name)]
    target = await asyncio.to_thread(target_of, joined.address)
    async with grpc.aio.secure_channel(target, credentials, options) as channel:
        try:
            answer = await _call(channel, csr, agent=is_agent(svid.spiffe_id))
        except grpc.aio.AioRpcError as error:
            raise translate_error(error, joined.address) from None
    new = check_certificate(answer.certificate_chain, key, answer.bundle, svid.spiffe_id)
    renewed_at = joined.model_copy(update={"address": answer.renew_address})
    await asyncio.to_thread(save_identity, folder, new, renewed_at)
    return new, renewed_at


async def _call(
    channel: grpc.aio.Channel, csr: bytes, *, agent: bool
) -> pb.RenewAgentResponse | pb.RenewIdentityResponse:
    """Call the RPC for agents, or that for people and services. Raises grpc.aio.AioRpcError."""
    stub = RemoteExecutionStub(channel)
    if agent:
        return await stub.RenewAgent(pb.RenewAgentRequest(csr=csr), timeout=CALL_SECONDS)
    return await stub.RenewIdentity(pb.RenewIdentityRequest(csr=csr), timeout=CALL_SECONDS)


async def renew_if_due(folder: Path, *, part: float = HALF) -> Svid | None:
    """Renew the identity in a folder if its owner joined and half of its life is over.

    Args:
        folder: the folder of the identity.
        part: part of its life that is left when it is renewed; 1 to renew it now.

    Returns:
        The new identity; None if it is not due, another process renews it, or it is not renewed here.

    Raises:
        TachikomaError: the orchestrator refuses or cannot be reached, or the files cannot be used.
    """
    joined = Joined.load(folder)
    if joined is None:
        return None
    try:
        with renewal_lock(folder) as free:
            if not free:
                return None
            finish_writing(folder)
            svid = FileSvidSource(folder).current()
            if due(svid, part).total_seconds() > 0:
                return None
            new, _ = await renew_now(folder, joined, svid)
            return new
    except OSError as error:
        raise ConfigurationError(f"cannot write the identity in {folder}, to renew it: {error}") from error


async def renew_in_passing(folder: Path) -> None:
    """Renew the identity in a folder if it is due; a failure is a warning, since the current one is still valid."""
    try:
        new = await renew_if_due(folder)
    except TachikomaError as error:
        log.warning(f"your certificate in {folder} could not be renewed: {error}")
        return
    if new is not None:
        log.debug("svid.renewed", spiffe_id=str(new.spiffe_id), until=new.not_after.isoformat())
