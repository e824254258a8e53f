"""The bounds of time that ARCHITECTURE.md names are those of the code."""

from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tachikoma.config.channels import KEEPALIVE_OPTIONS
from tachikoma.redis.access import OPERATION_SECONDS
from tachikoma.redis.celery_broker import HEALTH_SECONDS
from tachikoma_orchestrator.agents import silence
from tachikoma_orchestrator.executions import reaper, waiting_callers
from tachikoma_orchestrator.processes import server
from tachikoma_orchestrator.processes.settings import OrchestratorSettings
from tachikoma_orchestrator.store import known, scripts, subscriber
from tachikoma_worker.settings import WorkerSettings

PAGE = (Path(__file__).parents[3] / "ARCHITECTURE.md").read_text(encoding="utf-8")
KEEPALIVE = dict(KEEPALIVE_OPTIONS)


def seconds(kind: Any, field: str) -> float:
    """Return the default of a setting in seconds."""
    default = kind.model_fields[field].default
    assert isinstance(default, timedelta)
    return default.total_seconds()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            "connection to Redis that broke silently",
            f"two attempts of {OPERATION_SECONDS:g} s for a command, a ping after {subscriber.IDLE_SECONDS:g} s of "
            f"silence for a subscription, {2 * HEALTH_SECONDS:g} s after its poll ({seconds(WorkerSettings, 'poll'):g}",
        ),
        ("wait on a queue or for an approval", f"its timeout and {reaper.DUE_SECONDS:g} s, then `EXPIRED`"),
        (
            "execution of a silent agent",
            f"`TACHIKOMA_LEASE` ({seconds(OrchestratorSettings, 'lease'):g} s) after the last heartbeat and a sweep "
            f"({seconds(OrchestratorSettings, 'sweep'):g} s), also after a restart",
        ),
        (
            "confirmation of a change by all replicas of Redis",
            f"{scripts.REPLICAS_MS / 1000:g} s; if a replica left in the last {known.LINGER_SECONDS:g} s",
        ),
        ("an execution that its agent no longer holds", f"{silence.RESULT_SECONDS:g} s of heartbeats and a sweep"),
    ],
)
def test_a_bound_is_written_as_it_is_in_the_code(row: str, words: str) -> None:
    (found,) = (line for line in PAGE.splitlines() if line.startswith(f"| {row}"))
    assert words in found


@pytest.mark.parametrize(
    ("row", "longest"),
    [
        ("client that disappeared silently", (server.KEEPALIVE_MS + server.KEEPALIVE_TIMEOUT_MS) / 1000),
        (
            "orchestrator that disappeared or hangs",
            (KEEPALIVE["grpc.keepalive_time_ms"] + KEEPALIVE["grpc.http2.ping_timeout_ms"]) / 1000,
        ),
        (
            "wait of a caller whose record in the ledger is gone",
            # Silence is noticed at a look, and judged at another one.
            waiting_callers.LOOK_SECONDS
            * (1 + math.ceil(waiting_callers.SILENT_SECONDS / waiting_callers.LOOK_SECONDS)),
        ),
    ],
)
def test_15_seconds_are_enough(row: str, longest: float) -> None:
    (found,) = (line for line in PAGE.splitlines() if line.startswith(f"| {row}"))
    assert "15 s" in found
    assert longest <= 15
