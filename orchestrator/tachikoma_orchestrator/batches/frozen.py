"""A batch as it was requested, signed: the request, its list of targets, and the ids of its executions."""

from __future__ import annotations

import hashlib
import secrets
import time
from functools import cached_property

from tachikoma.identity.signed_batches import ApprovedBatch, FrozenBatch
from tachikoma.identity.signing import InvalidSignature, sign, verify
from tachikoma.identity.spiffe import SpiffeId
from tachikoma.identity.svid import Svid
from tachikoma.vocabulary.batches import ApprovalNeed, BatchRequest
from tachikoma.vocabulary.shares import share_of
from tachikoma_orchestrator.caller import Peer

__all__ = ["Frozen", "next_wave"]


class Frozen:
    """The verified content of a batch. No value in Redis can change it."""

    def __init__(self, claims: FrozenBatch, token: str = "") -> None:
        self.id = claims.jti
        self.request: BatchRequest = claims.batch
        self.targets = claims.targets
        #: The policies that required an approval when the batch was requested.
        self.needs = claims.needs
        #: SHA-256 of the signed form, in hexadecimal, if it was read.
        self.sha256 = hashlib.sha256(token.encode()).hexdigest()
        self._claims = claims

    @classmethod
    def make(
        cls, svid: Svid, request: BatchRequest, targets: tuple[str, ...], peer: Peer, nonce: str | None = None
    ) -> Frozen:
        """Make a new batch.

        Args:
            svid: the orchestrator's own.
            request: the request.
            targets: the agents, in the order in which they start.
            peer: the requester.
            nonce: 32 hexadecimal digits that nobody can guess; None for random ones.
        """
        claims = FrozenBatch(
            iss=str(svid.spiffe_id), iat=int(time.time()), jti=request.id, sub=str(peer), client_ip=peer.address,
            nonce=nonce or secrets.token_hex(16), batch=request, targets=targets,
        )  # fmt: skip
        return cls(claims)

    def signed(self, svid: Svid) -> str:
        """Return its signed form, by the orchestrator that made it."""
        return sign(svid, self._claims)

    @classmethod
    def read(cls, svid: Svid, batch_id: str, token: str) -> Frozen:
        """Verify the signed form of a batch.

        Raises:
            InvalidSignature: no orchestrator signed it, or it is of another batch.
        """
        claims = verify(token, FrozenBatch, svid.bundle, svid.spiffe_id, kept=True)
        if claims.jti != batch_id:
            raise InvalidSignature("is of another batch")
        return cls(claims, token)

    def with_needs(self, needs: tuple[ApprovalNeed, ...]) -> Frozen:
        """Return the same batch, which some policies require an approval of."""
        return Frozen(self._claims.model_copy(update={"needs": needs}))

    def read_approval(self, svid: Svid, token: str) -> ApprovedBatch:
        """Verify an approval of this batch.

        Raises:
            InvalidSignature: no orchestrator signed it, or it is of another batch.
        """
        claims = verify(token, ApprovedBatch, svid.bundle, svid.spiffe_id, kept=True)
        if (claims.jti, claims.batch_sha256, len(claims.targets)) != (self.id, self.sha256, len(self.targets)):
            raise InvalidSignature("is of another batch")
        return claims

    @property
    def requested_by(self) -> str:
        """SPIFFE ID of the requester."""
        return self._claims.sub

    @cached_property
    def peer(self) -> Peer:
        """The requester."""
        return Peer(SpiffeId.parse(self._claims.sub), self._claims.client_ip)

    @cached_property
    def places(self) -> dict[str, int]:
        """The place of each target in the list."""
        return {agent: place for place, agent in enumerate(self.targets)}

    def exec_id(self, agent: str) -> str:
        """Return the id of a target's execution: the same each time, so that no target starts twice."""
        text = f"{self._claims.nonce} {self.id} {agent}"
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def gate_id(self, place: int) -> str:
        """Return the id of the execution of the health gate at a place in the list: the same each time."""
        # No agent has an id with a space, so no target has such an execution id.
        return self.exec_id(f"gate {place}")

    def wave_end(self, released: int) -> int:
        """Return the place at which the wave ends that begins at a place: after the canary, one wave after another."""
        return next_wave(self.request, len(self.targets), released)

    def last_wave(self, released: int) -> tuple[str, ...]:
        """Return the targets of the wave that ends at a place; empty before the first wave."""
        begin = end = 0
        while end < min(released, len(self.targets)):
            begin, end = end, self.wave_end(end)
        return self.targets[begin:released]


def next_wave(request: BatchRequest, total: int, released: int) -> int:
    """Return the place at which the wave ends that begins at `released`."""
    if released == 0 and request.canary:
        return min(total, request.canary)
    return total if request.wave is None else min(total, released + share_of(request.wave, total))
