"""The agreement on keys: only the agent of the session can answer, and only the offer that was made."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import pytest

from authority import Authority
from tachikoma.identity.signed_messages import SessionAnswer, SessionOffer
from tachikoma.identity.signing import InvalidSignature, sign, verify
from tachikoma.identity.svid import Svid
from tachikoma.sessions.sealing import Direction, EphemeralKey, InvalidFrame
from tachikoma_orchestrator.sessions.handshake import Handshake, SessionAddress, verified_answer

DOMAIN = "tachikoma.local"
ADDRESS = SessionAddress("web-1", "job-7", "spiffe://tachikoma.local/user/alice", "192.0.2.7", "ab" * 32)


class NoRevocations:
    """The reason for which an agent is refused; empty for none."""

    reason = ""

    def refusal(self, agent: str, begins: Any) -> str:
        return self.reason


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def orchestrator(authority: Authority) -> Svid:
    return authority.svid(f"spiffe://{DOMAIN}/service/orchestrator")


@pytest.fixture(scope="module")
def agent(authority: Authority) -> Svid:
    return authority.svid(f"spiffe://{DOMAIN}/agent/web-1")


def answer(svid: Svid, handshake: Handshake, ephemeral: EphemeralKey, **values: Any) -> tuple[SessionAnswer, str]:
    fields = {
        "iss": str(svid.spiffe_id), "iat": int(time.time()), "aud": f"spiffe://{DOMAIN}/service/orchestrator",
        "jti": "job-7", "epoch": 3, "offer_sha256": hashlib.sha256(handshake.offer.encode()).hexdigest(),
        "key": ephemeral.public, "accepted": 17,
    }  # fmt: skip
    claims = SessionAnswer(**{**fields, **values})
    return claims, sign(svid, claims)


def verified(token: str, svid: Svid) -> SessionAnswer:
    return verified_answer(token, svid.bundle, DOMAIN, ADDRESS, NoRevocations())  # type: ignore[arg-type]


def test_both_sides_have_the_same_keys_afterwards(orchestrator: Svid, agent: Svid) -> None:
    handshake, key = Handshake(orchestrator, ADDRESS, 3), EphemeralKey()
    offer = verify(handshake.offer, SessionOffer, agent.bundle, orchestrator.spiffe_id)
    assert (offer.aud, offer.sub, offer.jti, offer.epoch) == (str(agent.spiffe_id), ADDRESS.caller, "job-7", 3)
    assert (offer.order_sha256, offer.client_ip) == (ADDRESS.order_sha256, "192.0.2.7")
    assert time.time() < offer.exp <= time.time() + 60
    _, token = answer(agent, handshake, key)
    epoch = handshake.accept(verified(token, orchestrator), token)
    assert epoch is not None
    assert (epoch.number, epoch.accepted, epoch.ended) == (3, 17, False)
    sealer, opener = key.agree(offer.key, handshake.offer, token, "job-7", 3, sends=Direction.TO_ORCHESTRATOR)
    assert opener.open(epoch.sealer.seal(b"in")) == b"in"
    assert epoch.opener.open(sealer.seal(b"out")) == b"out"


@pytest.mark.parametrize("values", [{"epoch": 2}, {"offer_sha256": "0" * 64}, {"aud": f"spiffe://{DOMAIN}/service/x"}])
def test_an_answer_to_another_offer_is_left_alone(orchestrator: Svid, agent: Svid, values: dict[str, Any]) -> None:
    handshake = Handshake(orchestrator, ADDRESS, 3)
    claims, token = answer(agent, handshake, EphemeralKey(), **values)
    assert handshake.accept(claims, token) is None


def test_a_key_that_cannot_be_used_is_refused(orchestrator: Svid, agent: Svid) -> None:
    handshake = Handshake(orchestrator, ADDRESS, 3)
    with pytest.raises(InvalidFrame):
        handshake.accept(*answer(agent, handshake, EphemeralKey(), key="A" * 43))


def test_only_the_agent_itself_answers(
    orchestrator: Svid, agent: Svid, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    handshake = Handshake(orchestrator, ADDRESS, 3)
    other = authority.svid(f"spiffe://{DOMAIN}/agent/web-2")
    with pytest.raises(InvalidSignature, match="is signed by"):
        verified(answer(other, handshake, EphemeralKey())[1], orchestrator)
    stranger = Authority().svid(f"spiffe://{DOMAIN}/agent/web-1")
    with pytest.raises(InvalidSignature, match="not signed by a trusted identity"):
        verified(answer(stranger, handshake, EphemeralKey())[1], orchestrator)
    with pytest.raises(InvalidSignature, match="is of the execution job-8"):
        verified(answer(agent, handshake, EphemeralKey(), jti="job-8")[1], orchestrator)
    monkeypatch.setattr(NoRevocations, "reason", "agent web-1 was revoked")
    with pytest.raises(InvalidSignature, match="agent web-1 was revoked"):
        verified(answer(agent, handshake, EphemeralKey())[1], orchestrator)
