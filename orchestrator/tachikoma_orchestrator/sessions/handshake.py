"""The agreement on the keys of an epoch: the orchestrator's signed offer, and the agent's signed answer."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass

from tachikoma.identity.bundles import TrustBundle
from tachikoma.identity.signed_messages import SessionAnswer, SessionOffer
from tachikoma.identity.signing import InvalidSignature, sign, signer_begins, verify
from tachikoma.identity.spiffe import agent_id
from tachikoma.identity.svid import Svid
from tachikoma.sessions.messages import OFFER_SECONDS
from tachikoma.sessions.sealing import Direction, EphemeralKey, Opener, Sealer
from tachikoma_orchestrator.agents.revocations import Revocations

__all__ = ["Epoch", "Handshake", "SessionAddress", "verified_answer"]


@dataclass(frozen=True, slots=True)
class SessionAddress:
    """A session, and the caller for whom an orchestrator makes offers."""

    agent: str
    exec_id: str
    #: SPIFFE ID of the caller.
    caller: str
    #: IP address of the caller; empty if it is unknown.
    client_ip: str
    #: SHA-256 of the order; empty before there is one.
    order_sha256: str = ""


@dataclass(frozen=True, slots=True)
class Epoch:
    """The keys of an epoch, and where input continues."""

    number: int
    sealer: Sealer
    opener: Opener
    #: Number of input bytes that the agent had accepted before the epoch.
    accepted: int
    #: True if the agent accepts no more input.
    ended: bool


class Handshake:
    """An offer that waits for its answer."""

    def __init__(self, svid: Svid, address: SessionAddress, epoch: int) -> None:
        """Sign an offer.

        Args:
            svid: the orchestrator's own.
            address: the session.
            epoch: number of the epoch.
        """
        self._address = address
        self._epoch = epoch
        self._issuer = str(svid.spiffe_id)
        self._key = EphemeralKey()
        now = int(time.time())
        #: The signed offer.
        self.offer = sign(
            svid,
            SessionOffer(
                iss=self._issuer,
                iat=now,
                exp=now + OFFER_SECONDS,
                aud=str(agent_id(svid.spiffe_id.trust_domain, address.agent)),
                sub=address.caller,
                jti=address.exec_id,
                order_sha256=address.order_sha256,
                epoch=epoch,
                key=self._key.public,
                client_ip=address.client_ip,
            ),
        )

    def accept(self, answer: SessionAnswer, token: str) -> Epoch | None:
        """Return the epoch of a verified answer; None if it answers another offer.

        Raises:
            InvalidFrame: the agent's ephemeral key cannot be used.
        """
        digest = hashlib.sha256(self.offer.encode()).hexdigest()
        if (answer.epoch, answer.offer_sha256, answer.aud) != (self._epoch, digest, self._issuer):
            return None
        sealer, opener = self._key.agree(
            answer.key, self.offer, token, self._address.exec_id, self._epoch, sends=Direction.TO_AGENT
        )
        return Epoch(self._epoch, sealer, opener, answer.accepted, answer.ended)


def verified_answer(
    token: str, bundle: TrustBundle, trust_domain: str, address: SessionAddress, revocations: Revocations
) -> SessionAnswer:
    """Verify an agent's answer.

    Args:
        token: the signed answer.
        bundle: roots of the trust domain.
        trust_domain: of the agent.
        address: the session.
        revocations: agents that were revoked.

    Raises:
        InvalidSignature: it is not signed by the agent, or belongs to another session.
    """
    answer = verify(token, SessionAnswer, bundle, agent_id(trust_domain, address.agent))
    if why := revocations.refusal(address.agent, signer_begins(token, SessionAnswer)):
        raise InvalidSignature(f"is not accepted: {why}")
    if answer.jti != address.exec_id:
        raise InvalidSignature(f"is of the execution {answer.jti}")
    return answer
