"""Celery's events as they are made from records and agents, and from which audit events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tachikoma.audit.codes import AUDIT_CODES, FlowerStep
from tachikoma.redis import keys
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.flower.celery_events import STEPS, WORKER_CODES, EventFactory


def test_every_final_state_ends_a_task() -> None:
    ending = {code for code, types in STEPS.items() if "task-succeeded" in types}
    assert ending == {state.lower() for state in ExecState if state.terminal}


def test_steps_follow_the_table_of_codes() -> None:
    assert STEPS[AuditCode.APPROVAL_REQUESTED] == {"task-sent"}
    assert STEPS[AuditCode.DISPATCHED] == {"task-received"}
    assert STEPS[AuditCode.STARTED] == {"task-started"}
    shown = {code for code, row in AUDIT_CODES.items() if row.flower is not None}
    assert {*STEPS, *WORKER_CODES} == shown
    assert {"agent_joined", "agent_left", "agent_revoked"} == WORKER_CODES
    assert all(row.flower is None for code, row in AUDIT_CODES.items() if code.startswith("schedule_"))
    assert {step for row in AUDIT_CODES.values() if (step := row.flower)} == set(FlowerStep)


@pytest.mark.parametrize("kind", ["task", "worker"])
def test_a_message_is_one_of_a_celery_worker(kind: str) -> None:
    events: list[dict[str, Any]] = [{"type": f"{kind}-x", "hostname": "ä"}, {"type": f"{kind}-y", "hostname": "b"}]
    factory = EventFactory()
    for _ in range(2):
        message = json.loads(factory.message(kind, events))
        assert message["content-type"] == "application/json"
        assert message["properties"]["delivery_info"]["routing_key"] == f"{kind}.multi"
        assert message["headers"]["hostname"] == "tachikoma"
    assert keys.celery_events(kind).endswith(f"{kind}.multi")
