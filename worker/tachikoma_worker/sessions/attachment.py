"""One attachment of an orchestrator to a session: its verified offer, the agent's answer, and the keys of both."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass

from tachikoma.identity.signed_messages import SessionAnswer, SessionOffer
from tachikoma.identity.signing import InvalidSignature, sign, verify
from tachikoma.identity.spiffe import agent_id, service_id
from tachikoma.identity.svid import SvidSource
from tachikoma.sessions.frames import Accepted, Frame, decode, encode
from tachikoma.sessions.sealing import Direction, EphemeralKey, Opener, Sealer

__all__ = ["AgentParty", "Attachment", "attach", "verified_offer"]


@dataclass(frozen=True, slots=True)
class AgentParty:
    """The agent as a party of the agreement on keys."""

    #: Id of the agent.
    agent: str
    identity: SvidSource
    #: Name of the only service that may sign offers.
    orchestrator: str


@dataclass(frozen=True, slots=True)
class Attachment:
    """An epoch: what the agent needs to open frames from an orchestrator, and to seal frames for it."""

    epoch: int
    #: SPIFFE ID of the caller, and its address, for the log.
    caller: str
    client_ip: str
    #: The signed answer, for the orchestrator.
    answer: str
    opener: Opener
    sealer: Sealer

    def open(self, raw: bytes) -> Frame:
        """Decrypt and parse a frame.

        Raises:
            ValueError: the bytes are no frame, the frame was altered, or it is not the next one.
        """
        return decode(self.opener.open(raw))

    def seal(self, progress: Accepted) -> bytes:
        """Return the progress of the input as a sealed frame."""
        return self.sealer.seal(encode(progress))


def verified_offer(party: AgentParty, token: str, exec_id: str, order_sha256: str, *, after_epoch: int) -> SessionOffer:
    """Return an offer if it is this agent's, for this order, and new.

    Args:
        party: the agent.
        token: the signed offer.
        exec_id: the execution.
        order_sha256: SHA-256 of its order.
        after_epoch: the last epoch of this worker; the offer's must be higher.

    Raises:
        InvalidSignature: the orchestrator did not sign the offer, or it is for another agent, execution or order, has
            expired, or is of an earlier epoch. `UnreadableMessage` is one of these.
        InvalidIdentity: the name of the orchestrator in the settings is no SPIFFE ID.
    """
    svid = party.identity.current()
    domain = svid.spiffe_id.trust_domain
    offer = verify(token, SessionOffer, svid.bundle, service_id(domain, party.orchestrator))
    if offer.aud != str(agent_id(domain, party.agent)) or offer.jti != exec_id:
        raise InvalidSignature("is for another agent or execution")
    if offer.order_sha256 != order_sha256:
        raise InvalidSignature("is for another order of this id")
    if time.time() >= offer.exp:
        raise InvalidSignature("has expired")
    if offer.epoch <= after_epoch:
        raise InvalidSignature(f"is of epoch {offer.epoch}, and the session is in epoch {after_epoch}")
    return offer


def attach(party: AgentParty, offer: SessionOffer, token: str, progress: Accepted) -> Attachment:
    """Answer an offer.

    Args:
        party: the agent.
        offer: the verified offer.
        token: the same, signed.
        progress: the accepted input, which does not change before the caller has the answer.

    Raises:
        InvalidFrame: the offer contains no usable key.
    """
    svid = party.identity.current()
    key = EphemeralKey()
    answer = sign(
        svid,
        SessionAnswer(
            iss=str(svid.spiffe_id),
            iat=int(time.time()),
            aud=offer.iss,
            jti=offer.jti,
            epoch=offer.epoch,
            offer_sha256=hashlib.sha256(token.encode()).hexdigest(),
            key=key.public,
            accepted=progress.offset,
            ended=progress.ended,
        ),
    )
    sealer, opener = key.agree(offer.key, token, answer, offer.jti, offer.epoch, sends=Direction.TO_ORCHESTRATOR)
    return Attachment(offer.epoch, offer.sub, offer.client_ip, answer, opener, sealer)
