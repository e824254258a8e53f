"""Steps that joining and renewal share: checking a new certificate, storing it, and reading errors of the orchestrator.

The member makes its own keys, and they never leave it.
"""

from __future__ import annotations

from pathlib import Path

import grpc
import grpc.aio
from cryptography.hazmat.primitives.asymmetric import ec

from tachikoma.client.rpc_errors import error_from_rpc
from tachikoma.config.channels import proxy_hint
from tachikoma.errors import ServerError, TachikomaError, Unavailable
from tachikoma.identity.authority import private_pem
from tachikoma.identity.join_token import Joined
from tachikoma.identity.spiffe import InvalidIdentity, SpiffeId
from tachikoma.identity.svid import Svid

__all__ = ["CALL_SECONDS", "check_certificate", "save_identity", "translate_error"]

#: Longest time of one call, the connection included.
CALL_SECONDS = 20.0


def translate_error(error: grpc.aio.AioRpcError, address: str) -> TachikomaError:
    """Return the error of a call to the orchestrator at an address, as one of our own classes."""
    trailing = [(str(key), value) for key, value in error.trailing_metadata() or ()]
    translated = error_from_rpc(error.code(), error.details() or "", trailing)
    if type(translated) is Unavailable and not translated.metadata:
        return Unavailable(
            f"cannot reach the orchestrator at {address}, or it is not the right one: {error.details()}"
            f"{proxy_hint(address)}"
        )
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Unavailable(f"the orchestrator at {address} did not answer in {CALL_SECONDS:g} s{proxy_hint(address)}")
    return translated


def check_certificate(
    chain_pem: bytes, key: ec.EllipticCurvePrivateKey, bundle_pem: bytes, requested: SpiffeId
) -> Svid:
    """Return the identity that the orchestrator issued.

    Args:
        chain_pem: the certificate and those between it and a root.
        key: the member's own key.
        bundle_pem: the roots to trust.
        requested: the SPIFFE ID that the certificate must have.

    Raises:
        ServerError: the certificate is for another identity than the requested one, or is not valid.
    """
    try:
        svid = Svid.load(chain_pem, private_pem(key), bundle_pem)
        if svid.spiffe_id != requested:
            raise InvalidIdentity(f"it is of {svid.spiffe_id}")
        svid.verify()
    except InvalidIdentity as error:
        raise ServerError(
            f"the certificate for {requested} that the orchestrator gave cannot be used: {error}; "
            "are both clocks right?"
        ) from None
    return svid


def save_identity(folder: Path, svid: Svid, joined: Joined) -> None:
    """Store an identity, and where it is renewed. Raises OSError."""
    joined.save(folder)
    svid.write(folder)
