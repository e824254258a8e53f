"""Joining: a host becomes an agent, or a person a user, with a token, and receives the first certificate.

Before the member sends anything, it authenticates the orchestrator by the root in the token.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
from cryptography import x509

from tachikoma.client.membership.certificates import CALL_SECONDS, check_certificate, save_identity, translate_error
from tachikoma.config.channels import proxy_options, target_of
from tachikoma.errors import ConfigurationError
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.exec.v1.remote_execution_pb2_grpc import JoiningStub
from tachikoma.identity.authority import make_request, new_key
from tachikoma.identity.certificates import id_of
from tachikoma.identity.files import CERTIFICATE_FILE, finish_writing, write_private
from tachikoma.identity.join_token import Joined, JoinToken
from tachikoma.identity.spiffe import Member, SpiffeId, is_agent

__all__ = ["REJOIN", "Answer", "join", "rejoin"]

#: What to do when an agent's identity cannot be renewed any more.
REJOIN = "make a token with `tachikoma agents enroll`, and join with it: `tachikoma worker join`"
#: The same for the identity of a person.
LOG_IN_AGAIN = "ask an operator for a token (`tachikoma users add`), and use it: `tachikoma login`"


def rejoin(spiffe_id: SpiffeId) -> str:
    """Return the remedy, in words, for an identity that cannot be renewed any more."""
    return REJOIN if is_agent(spiffe_id) else LOG_IN_AGAIN


@dataclass(frozen=True, slots=True)
class Answer:
    """The facts that the orchestrator sends in addition to the identity."""

    #: host:port of the orchestrator, where the identity is also renewed.
    address: str
    #: DNS name in the orchestrator's certificate.
    server_name: str
    #: Whether it sent a Redis password, which is now in its file.
    redis_password: bool
    #: URL of Redis without credentials; empty if the orchestrator does not know how members reach it.
    redis_url: str


async def join(token: JoinToken, folder: Path, password_file: Path | None = None) -> Answer:
    """Join with a token: store the identity in a folder, and the Redis password in its file.

    Args:
        token: the token of `tachikoma agents enroll` or `tachikoma users add`; it is used up.
        folder: the folder for the identity.
        password_file: the file for the Redis password; None for a person, who has none.

    Returns:
        What else the orchestrator sends.

    Raises:
        ConfigurationError: the files cannot be written, or the folder has the identity of another owner.
        Unauthenticated: the token is not accepted.
        Unavailable: the orchestrator cannot be reached, or is not the one of the token.
        TachikomaError: another answer of the orchestrator.
    """
    # Everything that can fail on this host is checked before the token is used.
    _prepare_folders(folder, folder if password_file is None else password_file.parent, token.spiffe_id)
    key = new_key()
    credentials = grpc.ssl_channel_credentials(token.root_pem)
    options = [*proxy_options(token.address), ("grpc.ssl_target_name_override", token.server_name)]
    message = pb.JoinRequest(
        agent_id=Member.required(token.spiffe_id).key, secret=token.secret, csr=make_request(key, token.spiffe_id)
    )
    target = await asyncio.to_thread(target_of, token.address)
    async with grpc.aio.secure_channel(target, credentials, options) as channel:
        try:
            answer = await JoiningStub(channel).Join(message, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise translate_error(error, token.address) from None
    svid = check_certificate(answer.certificate_chain, key, answer.bundle, token.spiffe_id)
    try:
        if answer.redis_password and password_file is not None:
            write_private(password_file, answer.redis_password.encode() + b"\n")
        save_identity(folder, svid, Joined(address=answer.renew_address, server_name=token.server_name))
    except OSError as error:
        raise ConfigurationError(f"cannot write the identity, and the token is used now: {error}") from error
    return Answer(answer.renew_address, token.server_name, bool(answer.redis_password), answer.redis_url)


def _prepare_folders(folder: Path, password_folder: Path, spiffe_id: SpiffeId) -> None:
    """Create the folders and check that they can be written.

    Raises:
        ConfigurationError: they cannot, or the folder has the identity of another owner.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_owner(folder, spiffe_id)
        finish_writing(folder)
        password_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for place in (folder, password_folder):
            if not os.access(place, os.W_OK | os.X_OK):
                raise PermissionError(f"{place} cannot be written")
    except OSError as error:
        raise ConfigurationError(f"cannot write the identity: {error}") from error


def _check_owner(folder: Path, spiffe_id: SpiffeId) -> None:
    """Check that a folder has no identity, or that of this SPIFFE ID.

    Raises:
        ConfigurationError: the folder has another identity.
    """
    try:
        found = id_of(x509.load_pem_x509_certificates((folder / CERTIFICATE_FILE).read_bytes())[0])
    except (OSError, ValueError):
        return
    if found != spiffe_id:
        raise ConfigurationError(f"{folder} has the identity of {found}; name another folder for {spiffe_id}")
