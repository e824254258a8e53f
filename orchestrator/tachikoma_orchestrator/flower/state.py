"""Flower's state of tasks and workers, made from the feed's events alone."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from typing import Any

from celery import Celery, states
from flower.events import EventsState
from flower.inspector import Inspector
from tornado.ioloop import IOLoop

from tachikoma_orchestrator.flower.celery_events import BEGIN

__all__ = ["AgentsInspector", "LedgerState"]

#: Largest number of tasks of each kind that the page of an agent lists.
MAX_LISTED = 50


class LedgerState(EventsState):  # type: ignore[misc]
    """The tasks and workers of all events so far. Repeated events change nothing."""

    def __init__(self, **bounds: int) -> None:
        super().__init__(**bounds)
        #: Ids of the tasks that each worker runs.
        self._running: defaultdict[str, set[str]] = defaultdict(set)

    def event(self, event: dict[str, Any]) -> None:
        """Take an event."""
        kind, name = event["type"], event["hostname"]
        if kind == BEGIN:
            self.clear(ready=False)
            self.counter.clear()
            self._running.clear()
            return
        if kind.startswith("task-"):
            uuid = event["uuid"]
            task = self.tasks.data.get(uuid)
            if task is not None and getattr(task, kind.removeprefix("task-"), None) == event["timestamp"]:
                return
            super().event(event)
            if self.tasks.data[uuid].state == states.STARTED:
                self._running[name].add(uuid)
            else:
                self._running[name].discard(uuid)
        else:
            super().event(event)
        if name in self.workers:
            # Task events are newer than the number in the agent's last heartbeat.
            self.workers[name].active = len(self._running[name])


class AgentsInspector(Inspector):  # type: ignore[misc]
    """The content of Flower's page of a worker, from the events instead of by remote control."""

    def __init__(self, io_loop: IOLoop, capp: Celery, state: LedgerState) -> None:
        super().__init__(io_loop, capp, timeout=0)
        self._state = state

    def inspect(self, workername: str | None = None) -> asyncio.Future[None]:
        """Update the content of a worker's page; without a name, no page needs an update."""
        if workername is not None:
            worker = self._state.workers.get(workername)
            if worker is None or not hasattr(worker, "tachikoma"):
                self.workers.pop(workername, None)
            else:
                self.workers[workername] = self._content(workername, worker)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def _content(self, name: str, worker: Any) -> dict[str, Any]:
        tasks = [task for _, task in self._state.tasks.items() if task.worker and task.worker.hostname == name]
        listed = _listed(tasks)
        return {
            "timestamp": time.time(),
            "stats": _stats(worker, tasks),
            "active_queues": [_queue(worker.tachikoma["queue"])],
            "active": listed[states.STARTED],
            "reserved": listed[states.RECEIVED],
            "scheduled": [],
            "revoked": [task["id"] for task in listed[states.REVOKED]],
            "registered": [],
            "conf": {},
        }


def _listed(tasks: list[Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the latest tasks in each state that the page lists."""
    listed: dict[str, list[dict[str, Any]]] = {states.STARTED: [], states.RECEIVED: [], states.REVOKED: []}
    for task in reversed(tasks):
        found = listed.get(task.state)
        if found is not None and len(found) < MAX_LISTED:
            found.append(
                {
                    "name": task.name, "id": task.uuid, "args": task.args, "kwargs": task.kwargs,
                    "acknowledged": True, "worker_pid": None,
                }
            )  # fmt: skip
    return listed


def _stats(worker: Any, tasks: list[Any]) -> dict[str, Any]:
    agent = worker.tachikoma
    return {
        "pool": {"implementation": "tachikoma", "max-concurrency": agent["slots"]},
        "broker": {"transport": "redis", "queue": agent["queue"], "waiting": agent["queued"]},
        "total": Counter(task.name for task in tasks),
        "rusage": {
            "load average": worker.loadavg,
            "memory used": f"{agent['memory_used']:.0%}",
            "disk used": f"{agent['disk_used']:.0%}",
        },
        "agent": agent["agent"],
        "host": agent["host"],
        "version": worker.sw_ver,
        "labels": ", ".join(f"{label}={value}" for label, value in sorted(agent["labels"].items())),
        "not enforced": "; ".join(agent["warnings"]),
    }


def _queue(name: str) -> dict[str, Any]:
    return {
        "name": name, "exchange": "", "routing_key": name, "exclusive": False, "durable": True, "no_ack": True,
        "alias": None, "queue_arguments": None, "binding_arguments": None, "auto_delete": False,
    }  # fmt: skip
