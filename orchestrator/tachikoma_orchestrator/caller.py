"""The peer that made a call."""

from __future__ import annotations

from cryptography import x509

from tachikoma.identity.spiffe import SpiffeId

__all__ = ["Peer"]


class Peer:
    """Who called: identity and address; and the certificate that was shown for it, where it was."""

    __slots__ = ("address", "certificate", "spiffe_id")

    def __init__(self, spiffe_id: SpiffeId, address: str, certificate: x509.Certificate | None = None) -> None:
        self.spiffe_id = spiffe_id
        self.address = address
        self.certificate = certificate

    def __str__(self) -> str:
        return str(self.spiffe_id)
