"""Cancels: only a genuine one for this execution, by its requester or an operator, is honoured."""

from __future__ import annotations

from typing import Any

import pytest

from authority import Authority
from local_agent import AGENT, DOMAIN, REQUESTER, LocalAgent
from tachikoma.identity.signed_messages import CancelOrder
from tachikoma.identity.signing import InvalidSignature, sign
from tachikoma.identity.spiffe import agent_id, service_id
from tachikoma.redis import keys
from tachikoma_worker.execution.cancel import as_token, read_cancel, read_cancel_until_available, verify_cancel


async def test_a_cancel_by_the_requester_or_an_operator_is_accepted(agent: LocalAgent) -> None:
    order = agent.order("/bin/true")
    for requested_by in ("", REQUESTER):
        verify_cancel(agent.context, order.jti, REQUESTER, agent.cancel(order, requested_by=requested_by))
    # A spool of an older version does not contain the requester.
    verify_cancel(agent.context, order.jti, "", agent.cancel(order, requested_by=REQUESTER))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"jti": "another"}, "another agent or execution"),
        ({"aud": str(agent_id(DOMAIN, "web-2"))}, "another agent or execution"),
        ({"requested_by": "spiffe://tachikoma.local/user/other"}, "whose execution it is not"),
    ],
)
async def test_a_cancel_for_something_else_is_refused(agent: LocalAgent, fields: dict[str, Any], message: str) -> None:
    order = agent.order("/bin/true")
    with pytest.raises(InvalidSignature, match=message):
        verify_cancel(agent.context, order.jti, REQUESTER, agent.cancel(order, **fields))


async def test_only_the_orchestrator_may_sign_a_cancel(agent: LocalAgent, authority: Authority) -> None:
    order = agent.order("/bin/true")
    stranger = Authority()
    claims = {"iat": 1, "aud": order.aud, "sub": REQUESTER, "jti": order.jti}
    for signer in (
        authority.svid(str(service_id(DOMAIN, "another"))),
        authority.svid(str(agent_id(DOMAIN, AGENT))),
        stranger.svid(str(service_id(DOMAIN, "orchestrator"))),
    ):
        token = sign(signer, CancelOrder(iss=str(signer.spiffe_id), **claims))
        with pytest.raises(InvalidSignature):
            verify_cancel(agent.context, order.jti, REQUESTER, token)


@pytest.mark.parametrize("token", ["", "no token", "a.b.c", "\ufffd" * 10])
async def test_a_text_that_is_no_token_is_refused(agent: LocalAgent, token: str) -> None:
    with pytest.raises(InvalidSignature):
        verify_cancel(agent.context, "job-7", "", token)


async def test_a_cancel_is_read_from_redis_if_there_is_one(agent: LocalAgent) -> None:
    assert await read_cancel(agent.context, "job-7") is None
    await agent.redis.set(keys.cancel(AGENT, "job-7"), b"token\xff")
    assert await read_cancel(agent.context, "job-7") == "token\ufffd"
    assert as_token(None) is None


async def test_a_value_of_another_type_is_no_cancel(agent: LocalAgent) -> None:
    await agent.redis.hset(keys.cancel(AGENT, "job-7"), "not", "a cancel")
    assert await read_cancel(agent.context, "job-7") is None


async def test_a_cancel_is_waited_for_while_redis_is_unavailable(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[int] = []
    await agent.redis.set(keys.cancel(AGENT, "job-7"), "token")
    get = agent.context.redis.get

    async def unavailable(name: Any) -> Any:
        if len(failures) < 2:
            failures.append(1)
            raise ConnectionError("unavailable")
        return await get(name)

    monkeypatch.setattr(agent.context.redis, "get", unavailable)
    assert await read_cancel_until_available(agent.context, "job-7") == "token"
    assert len(failures) == 2
