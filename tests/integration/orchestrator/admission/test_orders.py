"""Signed orders and parked requests, with the registry on a real Redis."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from admissions import AGENT, ALICE, ORCHESTRATOR, Stand
from tachikoma.dev.ca import DevelopmentCA
from tachikoma.errors import Unavailable
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.signed_messages import ParkedRequest, WorkOrder
from tachikoma.identity.signing import InvalidSignature, verify
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.policies import RateLimitConfig
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_orchestrator.admission.digests import request_digest
from tachikoma_orchestrator.admission.orders import AllowedRequest, Orders


@pytest.fixture
async def stand(redis: Redis, tmp_path: Path) -> Stand:
    return await Stand.make(redis, tmp_path)


async def allowed(stand: Stand, *command: str, **values: Any) -> AllowedRequest:
    request = ExecRequest(
        **{"id": "job-7", "agent_id": AGENT, "command": command or ("true",), "requested_by": str(ALICE), **values}
    )
    decision = await stand.admitter.decide(request, "192.0.2.7")
    assert decision.allowed
    return stand.admitter.allowed(request, decision, request_digest(request), "192.0.2.7")


def order_in(message: bytes) -> str:
    return str(json.loads(json.loads(message)["body"])[0][0])


async def test_an_order_holds_the_grant_and_the_agent_as_the_registry_knows_it(stand: Stand) -> None:
    accepted = await allowed(stand, "true", "x")
    dispatch = await stand.admitter.orders.dispatch(accepted, approved_by="spiffe://tachikoma.local/user/boss")
    order = verify(order_in(dispatch.message), WorkOrder, stand.identity.current().bundle, ORCHESTRATOR)
    assert order.grant == accepted.decision.grant
    assert (order.journal, order.labels, order.bound) == ("journal of web-1", {"rack": "r1"}, {})
    assert order.approved_by == "spiffe://tachikoma.local/user/boss"
    assert (dispatch.digest, dispatch.policy) == (accepted.digest, accepted.decision.policy)


async def test_an_agent_that_has_just_joined_is_looked_up_once(redis: Redis, tmp_path: Path) -> None:
    stand = Stand(redis, tmp_path, rate_limit=RateLimitConfig(), queue_size=10)
    # Its heartbeat is in Redis, and this orchestrator has not heard it yet.
    other = await Stand.make(redis, tmp_path / "other")
    assert await other.registry.journal(AGENT) == "journal of web-1"
    dispatch = await stand.admitter.orders.dispatch(await allowed(stand))
    order = verify(order_in(dispatch.message), WorkOrder, stand.identity.current().bundle, ORCHESTRATOR)
    assert order.journal == "journal of web-1"


async def test_an_order_does_not_expire_before_the_wait_that_was_granted(stand: Stand) -> None:
    stand.change_policy("maxTimeout: 5m", "rateLimit: {queueTimeout: 30s}")
    before = time.time()
    dispatch = await stand.admitter.orders.dispatch(await allowed(stand))
    after = time.time()
    order = verify(order_in(dispatch.message), WorkOrder, stand.identity.current().bundle, ORCHESTRATOR)
    assert before + 30 <= order.exp <= after + 31
    expires = datetime.fromisoformat(json.loads(dispatch.message)["headers"]["expires"])
    assert timedelta(seconds=29) < expires - datetime.fromtimestamp(before, UTC)


async def test_a_parked_request_is_no_order(stand: Stand) -> None:
    parked = await allowed(stand, "printf", "x")
    token = stand.admitter.orders.park(parked)
    bundle = stand.identity.current().bundle
    claims = verify(token, ParkedRequest, bundle, ORCHESTRATOR)
    assert (claims.jti, claims.request, claims.client_ip) == ("job-7", parked.request, "192.0.2.7")
    with pytest.raises(InvalidSignature):
        verify(token, WorkOrder, bundle, ORCHESTRATOR)


@pytest.mark.parametrize(
    ("orchestrator", "policy", "expected"),
    [
        (timedelta(minutes=10), None, timedelta(minutes=10)),
        (timedelta(minutes=10), timedelta(minutes=2), timedelta(minutes=2)),
        (timedelta(minutes=1), timedelta(minutes=2), timedelta(minutes=1)),
    ],
)
async def test_the_shortest_queue_timeout_counts(
    stand: Stand, orchestrator: timedelta, policy: timedelta | None, expected: timedelta
) -> None:
    if policy is not None:
        stand.change_policy("maxTimeout: 5m", f"rateLimit: {{queueTimeout: {policy.seconds}s}}")
    orders = Orders(stand.identity, stand.registry, RateLimitConfig(queue_timeout=orchestrator))
    assert orders.queue_timeout((await allowed(stand)).decision) == expected


async def test_an_order_waits_no_longer_than_the_orchestrators_certificate_lasts(stand: Stand, tmp_path: Path) -> None:
    ca = DevelopmentCA(tmp_path / "ca", "tachikoma.local")
    decision = (await allowed(stand)).decision
    ca.issue(ORCHESTRATOR, tmp_path / "short", lifetime=timedelta(minutes=3))
    orders = Orders(FileSvidSource(tmp_path / "short"), stand.registry, RateLimitConfig())
    assert orders.queue_timeout(decision) <= timedelta(minutes=3)
    ca.issue(ORCHESTRATOR, tmp_path / "expired", lifetime=timedelta(seconds=-1))
    orders = Orders(FileSvidSource(tmp_path / "expired"), stand.registry, RateLimitConfig())
    with pytest.raises(Unavailable, match="certificate has expired"):
        orders.queue_timeout(decision)


async def test_an_unknown_agent_has_neither_journal_nor_labels(stand: Stand) -> None:
    dispatch = await stand.admitter.orders.dispatch(await allowed(stand, agent_id="web-9"))
    order = verify(order_in(dispatch.message), WorkOrder, stand.identity.current().bundle, ORCHESTRATOR)
    assert (order.journal, order.labels, order.bound) == ("", {}, {})
    assert await stand.redis.get(keys.info("web-9")) is None
