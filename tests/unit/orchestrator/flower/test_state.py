"""Flower's state: events that come twice, executions that begin again, and the page of an agent."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery, states

from tachikoma_orchestrator.flower.celery_events import BEGIN
from tachikoma_orchestrator.flower.state import MAX_LISTED, AgentsInspector, LedgerState

NODE = "web-1@web-1"


def task(kind: str, uuid: str = "e1", at: float = 1.0, **values: Any) -> dict[str, Any]:
    about = {"uuid": uuid, "hostname": NODE, "name": "ls", "args": "ls -l", "kwargs": "{}", "clock": 0}
    return {"type": f"task-{kind}", "timestamp": at, "local_received": at, **about, **values}


def worker(kind: str = "heartbeat", at: float = 1.0) -> dict[str, Any]:
    agent = {
        "agent": "web-1", "host": "host-1", "slots": 8, "queue": "agent.web-1", "queued": 3, "memory_used": 0.25,
        "disk_used": 0.5, "labels": {"b": "2", "a": "1"}, "warnings": ["no cpu limit"],
    }  # fmt: skip
    return {
        "type": f"worker-{kind}", "hostname": NODE, "timestamp": at, "local_received": at, "freq": 10, "active": 5,
        "loadavg": "0.50", "sw_ident": "tachikoma", "sw_ver": "1", "sw_sys": "Linux", "clock": 0, "tachikoma": agent,
    }  # fmt: skip


@pytest.fixture
def state() -> LedgerState:
    return LedgerState(max_workers_in_memory=100, max_tasks_in_memory=100)


def test_running_tasks_are_counted_from_the_events(state: LedgerState) -> None:
    state.event(worker("online"))
    for uuid in ("e1", "e2"):
        state.event(task("received", uuid))
        state.event(task("started", uuid, 2.0))
    assert state.workers[NODE].active == 2
    state.event(task("succeeded", "e1", 3.0, result="x", runtime=1.0))
    # The number in a heartbeat is older.
    state.event(worker(at=3.0))
    assert state.workers[NODE].active == 1


def test_an_event_that_comes_twice_changes_nothing(state: LedgerState) -> None:
    first = [task("received"), task("started", at=2.0), task("failed", at=3.0, exception="FAILED")]
    for event in [*first, *first]:
        state.event(event)
    assert state.tasks["e1"].state == states.FAILURE
    assert state.counter[NODE]["task-failed"] == 1


def test_everything_begins_again_after_its_event(state: LedgerState) -> None:
    state.event(worker("online"))
    state.event(task("started"))
    state.event({"type": BEGIN, "hostname": "tachikoma", "timestamp": 5.0, "local_received": 5.0, "clock": 0})
    assert list(state.tasks.items()) == []
    assert not state.workers
    state.event(worker("online", 6.0))
    assert state.workers[NODE].active == 5 or state.workers[NODE].active == 0


async def test_the_page_of_an_agent_shows_its_queue_its_tasks_and_its_warnings(state: LedgerState) -> None:
    state.event(worker("online"))
    for number in range(MAX_LISTED + 5):
        state.event(task("received", f"e{number}", float(number)))
    state.event(task("started", "run", 200.0))
    inspector = AgentsInspector(Mock(), Celery("test-state", set_as_current=False), state)
    await inspector.inspect(NODE)
    page = inspector.workers[NODE]
    assert page["stats"]["broker"]["waiting"] == 3
    assert page["stats"]["labels"] == "a=1, b=2"
    assert page["stats"]["not enforced"] == "no cpu limit"
    assert page["stats"]["rusage"]["memory used"] == "25%"
    assert [item["id"] for item in page["active"]] == ["run"]
    assert len(page["reserved"]) == MAX_LISTED
    assert page["active_queues"][0]["name"] == "agent.web-1"


async def test_an_unknown_agent_has_no_page(state: LedgerState) -> None:
    inspector = AgentsInspector(Mock(), Celery("test-state", set_as_current=False), state)
    await inspector.inspect("nobody")
    await asyncio.wait_for(inspector.inspect(), 1)
    assert not inspector.workers
