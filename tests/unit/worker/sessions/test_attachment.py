"""Keys of an attachment: both sides agree on them, and an offer counts only if it is genuine, in time and new."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import pytest

from authority import Authority
from tachikoma.identity.signed_messages import SessionAnswer, SessionOffer
from tachikoma.identity.signing import InvalidSignature, sign, verify
from tachikoma.identity.spiffe import agent_id, service_id
from tachikoma.identity.svid import Svid
from tachikoma.sessions.frames import Accepted, Data, Detach, Frame, decode, encode
from tachikoma.sessions.sealing import Direction, EphemeralKey, InvalidFrame
from tachikoma_worker.sessions.attachment import AgentParty, Attachment, attach, verified_offer

DOMAIN, AGENT, EXECUTION = "tachikoma.local", "web-1", "job-7"
ORDER = "ab" * 32
AUTHORITY = Authority()
ORCHESTRATOR = AUTHORITY.svid(str(service_id(DOMAIN, "orchestrator")))


class Source:
    """An identity that does not change."""

    def __init__(self, svid: Svid) -> None:
        self._svid = svid

    def current(self) -> Svid:
        return self._svid

    def close(self) -> None:
        return None


AGENT_SVID = AUTHORITY.svid(str(agent_id(DOMAIN, AGENT)))
PARTY = AgentParty(AGENT, Source(AGENT_SVID), "orchestrator")


def offer(key: EphemeralKey, signer: Svid = ORCHESTRATOR, **values: Any) -> str:
    now = int(time.time())
    fields = {
        "iss": str(signer.spiffe_id), "iat": now, "exp": now + 30, "aud": str(agent_id(DOMAIN, AGENT)),
        "sub": "spiffe://tachikoma.local/user/alice", "jti": EXECUTION, "epoch": 3, "order_sha256": ORDER,
        "key": key.public, "client_ip": "192.0.2.7",
    }  # fmt: skip
    return sign(signer, SessionOffer(**{**fields, **values}))


def attached(token: str, after_epoch: int = 2) -> Attachment:
    progress = Accepted(12, echo=True, ended=True)
    found = verified_offer(PARTY, token, EXECUTION, ORDER, after_epoch=after_epoch)
    return attach(PARTY, found, token, progress)


def test_both_sides_have_the_keys_and_the_answer_says_where_to_continue() -> None:
    key = EphemeralKey()
    token = offer(key)
    made = attached(token)
    answer = verify(made.answer, SessionAnswer, ORCHESTRATOR.bundle, agent_id(DOMAIN, AGENT))
    assert (answer.epoch, answer.accepted, answer.ended, answer.jti) == (3, 12, True, EXECUTION)
    assert (answer.aud, answer.offer_sha256) == (
        str(ORCHESTRATOR.spiffe_id),
        hashlib.sha256(token.encode()).hexdigest(),
    )
    assert (made.epoch, made.caller, made.client_ip) == (3, "spiffe://tachikoma.local/user/alice", "192.0.2.7")
    sealer, opener = key.agree(answer.key, token, made.answer, EXECUTION, 3, sends=Direction.TO_AGENT)
    frames: tuple[Frame, ...] = (Data(12, b"ls\r"), Detach())
    assert [made.open(sealer.seal(encode(frame))) for frame in frames] == list(frames)
    assert decode(opener.open(made.seal(Accepted(15)))) == Accepted(15)


def test_a_frame_is_opened_once_and_only_unchanged() -> None:
    key = EphemeralKey()
    token = offer(key)
    made = attached(token)
    answer = verify(made.answer, SessionAnswer, ORCHESTRATOR.bundle, agent_id(DOMAIN, AGENT))
    sealer, _ = key.agree(answer.key, token, made.answer, EXECUTION, 3, sends=Direction.TO_AGENT)
    raw = sealer.seal(encode(Data(12, b"ls\r")))
    with pytest.raises(InvalidFrame):
        made.open(raw[:-1] + bytes([raw[-1] ^ 1]))
    made.open(raw)
    with pytest.raises(InvalidFrame):
        made.open(raw)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"aud": str(agent_id(DOMAIN, "web-2"))}, "another agent or execution"),
        ({"jti": "job-8"}, "another agent or execution"),
        ({"order_sha256": "cd" * 32}, "another order"),
        ({"exp": int(time.time()) - 1}, "has expired"),
        ({"epoch": 2}, "is of epoch 2, and the session is in epoch 2"),
        ({"epoch": 1}, "is of epoch 1, and the session is in epoch 2"),
    ],
)
def test_an_offer_that_does_not_belong_here_is_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidSignature, match=reason):
        attached(offer(EphemeralKey(), **values))


@pytest.mark.parametrize("name", ["agent", "another service", "another authority"])
def test_an_offer_of_another_signer_is_refused(name: str) -> None:
    signer = {
        "agent": AGENT_SVID,
        "another service": AUTHORITY.svid(str(service_id(DOMAIN, "submitter"))),
        "another authority": Authority().svid(str(service_id(DOMAIN, "orchestrator"))),
    }[name]
    with pytest.raises(InvalidSignature):
        attached(offer(EphemeralKey(), signer))


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "\u00e4"])
def test_a_text_that_is_no_offer_is_refused(token: str) -> None:
    with pytest.raises(InvalidSignature):
        attached(token)


def test_an_offer_without_a_usable_key_is_refused() -> None:
    class Unusable(EphemeralKey):
        @property
        def public(self) -> str:
            return "A" * 43

    with pytest.raises(InvalidFrame, match="ephemeral key"):
        attached(offer(Unusable()))
