"""The executions of a revoked agent, on a real Redis."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from members import AGENT, DOMAIN, OPERATOR, WEB, Stand
from tachikoma.identity.signed_messages import CancelOrder
from tachikoma.identity.signing import verify
from tachikoma.identity.spiffe import service_id
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.agents.registry import Registry
from tachikoma_orchestrator.agents.revocations import Revoked
from tachikoma_orchestrator.agents.revoking import EndedExecutions
from tachikoma_orchestrator.audit.findings import Findings
from tachikoma_orchestrator.audit.trail import TrailBounds
from tachikoma_orchestrator.executions.collector import Collector
from tachikoma_orchestrator.executions.evidence import Evidence
from tachikoma_orchestrator.executions.reaper import Reaper, Retention
from tachikoma_orchestrator.executions.revocation import ExecutionsOfAgent, end_revoked
from tachikoma_orchestrator.executions.transitions import FENCE, Admission, Dispatch, Outcome
from tachikoma_orchestrator.executions.waiters import Completions

REVOKED = Revoked(1, str(OPERATOR), "stolen", active=True)


@pytest.fixture
async def stand(redis: Redis, tmp_path: Path) -> Stand:
    return Stand(redis, tmp_path)


async def executions(stand: Stand, agent: str = AGENT, prefix: str = "") -> None:
    """One execution that waits on its agent's queue, one that runs, one that asks for an approval."""
    await stand.redis.set(keys.info(agent), "{}")
    await stand.redis.hset(keys.AGENTS, agent, "{}")
    for name in ("waits", "runs", "asks"):
        exec_id = f"{prefix}{name}"
        request = ExecRequest(id=exec_id, agent_id=agent, command=["/bin/true"], requested_by=str(OPERATOR))
        asks = {"parked": "x", "approvers": (str(OPERATOR),)} if name == "asks" else {}
        admission = Admission(
            request, request.command, "digest", "web@1", "", timedelta(minutes=9), timedelta(hours=1), {}, **asks
        )
        dispatch = None if asks else Dispatch("digest", "order", "web@1", b"message")
        assert (await stand.ledger.admit(admission, dispatch))[0] is Outcome.ADMITTED
    await stand.redis.set(keys.claim(agent, f"{prefix}runs"), "boot")
    await stand.ledger.started(agent, f"{prefix}runs", 1)


async def states(stand: Stand, *exec_ids: str) -> dict[str, ExecState]:
    return {record.exec_id: record.state for record in await stand.ledger.records(exec_ids)}


async def test_only_what_the_agent_has_started_gets_a_signed_cancel_order(stand: Stand) -> None:
    await executions(stand)
    await executions(stand, "web-2", "other-")
    of_agent = ExecutionsOfAgent(stand.redis, stand.ledger, stand.identity)
    await of_agent.cancel_running(AGENT, by=str(OPERATOR))
    token = await stand.redis.get(keys.cancel(AGENT, "runs"))
    svid = stand.identity.current()
    order = verify(token.decode(), CancelOrder, svid.bundle, service_id(DOMAIN, "orchestrator"))
    assert (order.jti, order.aud, order.sub, order.requested_by) == ("runs", str(WEB), str(OPERATOR), "")
    for agent, exec_id in ((AGENT, "waits"), (AGENT, "asks"), ("web-2", "other-runs"), ("web-2", "other-waits")):
        assert await stand.redis.get(keys.cancel(agent, exec_id)) is None


async def test_every_execution_of_the_agent_ends_except_those_that_wait_for_an_approval(stand: Stand) -> None:
    await executions(stand)
    await executions(stand, "web-2", "other-")
    of_agent = ExecutionsOfAgent(stand.redis, stand.ledger, stand.identity)
    assert await of_agent.end_all(AGENT, REVOKED) == EndedExecutions(cancelled=1, lost=1)
    assert await states(stand, "waits", "runs", "asks") == {
        "waits": ExecState.CANCELLED,
        "runs": ExecState.LOST,
        "asks": ExecState.PENDING_APPROVAL,
    }
    assert await states(stand, "other-waits", "other-runs") == {
        "other-waits": ExecState.QUEUED,
        "other-runs": ExecState.STARTED,
    }
    for record in await stand.ledger.records(["waits", "runs"]):
        assert record.error == f"its agent was revoked by {OPERATOR}: stolen"
    # What has ended is not ended again.
    assert await of_agent.end_all(AGENT, REVOKED) == EndedExecutions(cancelled=0, lost=0)


async def test_what_a_reaper_ended_for_the_revocation_is_counted_too(stand: Stand) -> None:
    await executions(stand)
    of_agent = ExecutionsOfAgent(stand.redis, stand.ledger, stand.identity)
    known = await of_agent.open_ids(AGENT)
    assert sorted(known) == ["runs", "waits"]
    for record in await stand.ledger.records(["waits"]):
        assert await end_revoked(stand.ledger, record, REVOKED) is ExecState.CANCELLED
    assert await of_agent.end_all(AGENT, REVOKED, known) == EndedExecutions(cancelled=1, lost=1)


async def test_an_execution_that_was_claimed_a_moment_ago_is_lost(stand: Stand) -> None:
    await executions(stand)
    record = await stand.ledger.record("waits")
    assert record is not None
    await stand.redis.set(keys.claim(AGENT, "waits"), "boot")
    assert await end_revoked(stand.ledger, record, REVOKED) is ExecState.LOST
    assert await end_revoked(stand.ledger, record, REVOKED) is None


async def test_an_order_that_slipped_past_a_revocation_is_ended_by_the_reaper(stand: Stand) -> None:
    # Another orchestrator revoked the agent and stopped before it had ended the executions.
    registry = Registry(stand.redis, stand.identity)
    findings = Findings(stand.redis, stand.trail)
    evidence = Evidence(stand.redis, findings, stand.identity, registry.revocations)
    collector = Collector(stand.redis, stand.ledger, Completions(), registry, stand.identity, evidence, findings)
    reaper = Reaper(
        stand.redis, stand.ledger, registry, collector, lease=timedelta(hours=1), interval=timedelta(hours=1),
        retention=Retention(stand.trail, TrailBounds(timedelta(hours=1), 1000, closed=False)),
    )  # fmt: skip
    await executions(stand)
    entry = b'{"active":true,"at_ms":1,"details":{"by":"spiffe://x/user/y","reason":"stolen"}}'
    await stand.redis.hset(keys.REVOKED, AGENT, entry)
    assert await stand.ledger.readiness(AGENT, keys.queue(AGENT)) is Outcome.REVOKED
    await registry.revocations.refresh()
    await reaper.sweep()
    # An execution that waits for its approval has no order yet. Its agent may have joined again by then.
    assert await states(stand, "waits", "runs", "asks") == {
        "waits": ExecState.CANCELLED,
        "runs": ExecState.LOST,
        "asks": ExecState.PENDING_APPROVAL,
    }
    assert await stand.redis.get(keys.claim(AGENT, "waits")) == FENCE.encode()
    ended = {event.id: event for event in await stand.events() if event.event in ("cancelled", "lost")}
    assert all("stolen" in event.reason and event.actor == "spiffe://x/user/y" for event in ended.values())
    assert set(ended) == {"waits", "runs"}
