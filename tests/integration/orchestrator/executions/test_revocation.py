"""The executions of a revoked agent, on a real Redis."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from members import AGENT, DOMAIN, OPERATOR, WEB, Stand
from tachikoma.identity.signed_messages import CancelOrder
from tachikoma.identity.signing import verify
from tachikoma.identity.spiffe import SpiffeId, service_id, user_id
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
from tachikoma_orchestrator.executions.revocation import ExecutionsOfMembers, end_revoked
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


def make_reaper(stand: Stand) -> tuple[Reaper, Registry]:
    """The reaper of another orchestrator, and the registry whose revocations it reads."""
    registry = Registry(stand.redis, stand.identity)
    findings = Findings(stand.redis, stand.trail)
    evidence = Evidence(stand.redis, findings, stand.identity, registry.revocations)
    collector = Collector(stand.redis, stand.ledger, Completions(), registry, stand.identity, evidence, findings)
    reaper = Reaper(
        stand.redis, stand.ledger, registry, collector, lease=timedelta(hours=1), interval=timedelta(hours=1),
        retention=Retention(stand.trail, TrailBounds(timedelta(hours=1), 1000, closed=False)),
        executions=ExecutionsOfMembers(stand.redis, stand.ledger, stand.identity),
    )  # fmt: skip
    return reaper, registry


async def states(stand: Stand, *exec_ids: str) -> dict[str, ExecState]:
    return {record.exec_id: record.state for record in await stand.ledger.records(exec_ids)}


async def test_only_what_the_agent_has_started_gets_a_signed_cancel_order(stand: Stand) -> None:
    await executions(stand)
    await executions(stand, "web-2", "other-")
    of_agent = ExecutionsOfMembers(stand.redis, stand.ledger, stand.identity)
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
    of_agent = ExecutionsOfMembers(stand.redis, stand.ledger, stand.identity)
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
    of_agent = ExecutionsOfMembers(stand.redis, stand.ledger, stand.identity)
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


EVE, ADA = user_id(DOMAIN, "eve"), user_id(DOMAIN, "ada")
BY_OPERATOR = {"by": str(OPERATOR), "reason": "left"}


async def sessions(stand: Stand, person: SpiffeId, prefix: str = "") -> None:
    """Sessions of a person that ask for an approval, wait and run, and a command that runs."""
    await stand.redis.set(keys.info(AGENT), "{}")
    await stand.redis.hset(keys.AGENTS, AGENT, "{}")
    for name in ("asks", "waits", "runs", "plain"):
        exec_id = f"{prefix}{name}"
        request = ExecRequest(
            id=exec_id, agent_id=AGENT, command=["/bin/true"], requested_by=str(person), interactive=name != "plain"
        )
        asks = {"parked": "x", "approvers": (str(OPERATOR),)} if name == "asks" else {}
        admission = Admission(
            request, request.command, "digest", "web@1", "", timedelta(minutes=9), timedelta(hours=1), {}, **asks
        )
        dispatch = None if asks else Dispatch("digest", "order", "web@1", b"message")
        assert (await stand.ledger.admit(admission, dispatch))[0] is Outcome.ADMITTED
        if name in ("runs", "plain"):
            await stand.redis.set(keys.claim(AGENT, exec_id), "boot")
            await stand.ledger.started(AGENT, exec_id, 1)


async def check_ended_sessions(stand: Stand) -> None:
    """Check that the sessions of Eve are ended, that her command runs, and that the reasons are recorded."""
    assert await states(stand, "asks", "waits", "runs", "plain") == {
        "asks": ExecState.CANCELLED,
        "waits": ExecState.CANCELLED,
        # Its agent has the order to end it.
        "runs": ExecState.STARTED,
        "plain": ExecState.STARTED,
    }
    reason = f"its requester was revoked by {OPERATOR}: left"
    records = {record.exec_id: record for record in await stand.ledger.records(["asks", "waits", "runs", "plain"])}
    assert [records[name].error for name in ("asks", "waits")] == [reason, reason]
    assert [records[name].cancel_requested_by for name in ("runs", "plain")] == [str(OPERATOR), ""]
    token = await stand.redis.get(keys.cancel(AGENT, "runs"))
    svid = stand.identity.current()
    order = verify(token.decode(), CancelOrder, svid.bundle, service_id(DOMAIN, "orchestrator"))
    assert (order.jti, order.sub, order.requested_by) == ("runs", str(OPERATOR), "")
    assert await stand.redis.get(keys.cancel(AGENT, "plain")) is None
    [asked] = [event for event in await stand.events() if event.event == "cancel_requested"]
    assert (asked.id, asked.actor, asked.reason) == ("runs", str(OPERATOR), reason)


async def test_the_sessions_of_a_revoked_person_end_and_nothing_else(stand: Stand) -> None:
    await sessions(stand, EVE)
    await sessions(stand, ADA, "other-")
    revoker = stand.members.revoker
    await revoker.revoke_user("eve", "left", OPERATOR)
    await check_ended_sessions(stand)
    assert (await states(stand, "other-waits")) == {"other-waits": ExecState.QUEUED}
    # A repetition sends nothing again.
    await revoker.revoke_user("eve", "left", OPERATOR)
    await check_ended_sessions(stand)


async def test_a_session_whose_record_was_altered_is_no_exception(stand: Stand) -> None:
    await sessions(stand, EVE)
    await stand.redis.hset(keys.execution("plain"), "request", "{")
    await stand.members.revoker.revoke_user("eve", "left", OPERATOR)
    assert await stand.redis.exists(keys.cancel(AGENT, "plain"))


@pytest.mark.parametrize("again", [False, True], ids=["revoked", "logged in again"])
async def test_sessions_that_a_stopped_orchestrator_left_are_ended_by_the_reaper(stand: Stand, again: bool) -> None:
    # The revocation was recorded, and its orchestrator stopped then.
    await sessions(stand, EVE)
    entry = {"active": not again, "at_ms": await stand.ledger.now_ms(), "details": BY_OPERATOR}
    await stand.redis.hset(keys.REVOKED, "user/eve", json.dumps(entry))
    reaper, registry = make_reaper(stand)
    await registry.revocations.refresh()
    await reaper.sweep()
    await check_ended_sessions(stand)
    await reaper.sweep()
    await check_ended_sessions(stand)
    # A person who has logged in again may open new ones.
    await stand.redis.hset(keys.REVOKED, "user/eve", json.dumps({**entry, "active": False}))
    while await stand.ledger.now_ms() <= entry["at_ms"]:
        pass
    await sessions(stand, EVE, "new-")
    await registry.revocations.refresh()
    await reaper.sweep()
    assert await states(stand, "new-waits", "new-runs") == {
        "new-waits": ExecState.QUEUED, "new-runs": ExecState.STARTED,
    }  # fmt: skip
    assert not await stand.redis.exists(keys.cancel(AGENT, "new-runs"))


async def test_an_order_that_slipped_past_a_revocation_is_ended_by_the_reaper(stand: Stand) -> None:
    # Another orchestrator revoked the agent and stopped before it had ended the executions.
    reaper, registry = make_reaper(stand)
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
