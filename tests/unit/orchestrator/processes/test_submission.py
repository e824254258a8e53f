"""Signed requests: verified, and repeated while Redis is unavailable."""

from __future__ import annotations

import time
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from authority import Authority
from tachikoma.errors import Unauthenticated, Unavailable
from tachikoma.identity.signed_messages import SignedRequest
from tachikoma.identity.signing import sign
from tachikoma.identity.svid import Svid
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_orchestrator.processes import submission
from tachikoma_orchestrator.processes.submission import persist, read_request

DOMAIN = "spiffe://tachikoma.local"
ALICE, AGENT, ORCHESTRATOR = f"{DOMAIN}/user/alice", f"{DOMAIN}/agent/web-1", f"{DOMAIN}/service/orchestrator"


@pytest.fixture(scope="module")
def own(authority: Authority) -> Svid:
    return authority.svid(ORCHESTRATOR)


def token(signer: Svid, **changes: Any) -> str:
    now, request = int(time.time()), ExecRequest(agent_id="web-1", command=("true",))
    values = {
        "iss": str(signer.spiffe_id), "aud": ORCHESTRATOR, "jti": request.id, "iat": now, "exp": now + 60,
        "request": request,
    }  # fmt: skip
    return sign(signer, SignedRequest(**{**values, **changes}))


def test_a_request_is_returned_with_its_signer(authority: Authority, own: Svid) -> None:
    claims, peer = read_request(token(authority.svid(ALICE)), own, SignedRequest)
    assert str(peer) == ALICE
    assert claims.request.command == ("true",)
    assert (peer.address, peer.certificate) == ("", None)


@pytest.mark.parametrize("given", [None, 7, {}, "", "a.b.c", b"x"])
def test_anything_else_than_a_token_is_refused(own: Svid, given: object) -> None:
    with pytest.raises(Unauthenticated, match="the request "):
        read_request(given, own, SignedRequest)


def test_a_request_must_be_for_this_orchestrator_from_a_trusted_requester_and_soon(
    authority: Authority, stranger: Authority, own: Svid
) -> None:
    alice = authority.svid(ALICE)
    wrong = {
        "not for spiffe://": token(alice, aud=f"{DOMAIN}/service/other"),
        "valid for more than": token(alice, exp=int(time.time()) + 10**6),
        "agents do not request commands": token(authority.svid(AGENT)),
        "not trusted": token(stranger.svid(ALICE)),
        "another issuer": token(alice, iss=f"{DOMAIN}/user/bob"),
    }
    for reason, given in wrong.items():
        with pytest.raises(Unauthenticated, match=reason):
            read_request(given, own, SignedRequest)


class Clock:
    """A clock that advances with each wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(submission.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(submission.Backoff, "wait", self.wait)

    async def wait(self, *_: object) -> None:
        self.now += 60


async def test_work_is_repeated_until_redis_responds(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    attempts = iter([RedisConnectionError("refused"), OSError("broken"), "done"])

    async def work() -> str:
        result = next(attempts)
        if isinstance(result, Exception):
            raise result
        return result

    assert await persist(work) == "done"


async def test_work_is_not_repeated_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, attempts = Clock(monkeypatch), 0

    async def work() -> None:
        nonlocal attempts
        attempts += 1
        raise RedisConnectionError("refused")

    with pytest.raises(Unavailable, match="nothing was lost, try again"):
        await persist(work)
    assert clock.now > submission.PERSIST_SECONDS
    assert attempts == clock.now / 60 + 1


async def test_an_error_that_is_not_of_redis_is_raised_at_once() -> None:
    async def work() -> None:
        raise Unauthenticated("no")

    with pytest.raises(Unauthenticated):
        await persist(work)
