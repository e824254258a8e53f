"""The authenticated caller of an RPC."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509

from tachikoma.identity.spiffe import SpiffeId

__all__ = ["Peer"]


@dataclass(frozen=True, slots=True)
class Peer:
    """The caller of an RPC, or another requester: a schedule, the sender of a Celery message."""

    spiffe_id: SpiffeId
    #: IP address that the call came from; empty when the address is unknown or the call did not come over the network.
    address: str
    #: Verified X.509-SVID of the connection; None when the call did not come over mTLS.
    certificate: x509.Certificate | None = None

    def __str__(self) -> str:
        return str(self.spiffe_id)
