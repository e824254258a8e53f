"""The settings of the agent's Celery application that its promises rest on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from celery import Celery, current_app, signals
from celery._state import _set_current_app  # type: ignore[attr-defined]

from tachikoma.redis import keys
from tachikoma.redis.access import RedisAccess
from tachikoma_worker import celery_app as module
from tachikoma_worker.celery_app import make_app, run_worker
from tachikoma_worker.settings import WorkerSettings


@pytest.fixture
def settings(tmp_path: Path) -> WorkerSettings:
    return WorkerSettings(agent_id="web-1", redis_url="unix:///x", identity=tmp_path, data=tmp_path, slots=7)


@pytest.fixture
def app(settings: WorkerSettings) -> Iterator[Celery]:
    before = current_app._get_current_object()
    engine = SimpleNamespace(access=RedisAccess(settings.redis_url))
    yield make_app(settings, engine)  # type: ignore[arg-type]
    _set_current_app(before)


def test_a_message_is_acknowledged_before_its_command_starts(app: Celery) -> None:
    assert app.conf.task_acks_late is False
    assert app.conf.broker_transport_options["ack_emulation"] is False


def test_only_the_agents_own_queues_are_read(app: Celery) -> None:
    assert [queue.name for queue in app.conf.task_queues] == list(keys.queues("web-1"))
    assert app.conf.task_default_queue == keys.queue("web-1")
    assert app.conf.task_create_missing_queues is False
    assert app.conf.worker_enable_remote_control is False


def test_the_engine_stores_the_result_and_celery_does_not(app: Celery) -> None:
    assert app.conf.task_ignore_result is True
    assert app.conf.worker_pool == "tachikoma_worker.pool:EnginePool"


def test_the_body_of_the_task_is_never_run(app: Celery) -> None:
    with pytest.raises(RuntimeError, match="this body never does"):
        app.tasks[keys.EXECUTE_TASK].run("order")


def test_a_worker_reports_its_readiness_and_its_stop(
    app: Celery, settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    given: dict[str, object] = {}

    class Worker:
        exitcode = None

        def __init__(self, **values: object) -> None:
            given.update(values)

        def start(self) -> None:
            signals.worker_ready.send(sender=self)
            signals.worker_shutting_down.send(sender=self)

    monkeypatch.setattr(app, "Worker", Worker)
    code = run_worker(app, settings, on_ready=lambda: seen.append("ready"), on_stopping=lambda: seen.append("stopping"))
    assert (code, seen) == (0, ["ready", "stopping"])
    assert (given["hostname"], given["concurrency"]) == (keys.node("web-1"), 7)
    # Afterwards it listens no more.
    signals.worker_ready.send(sender=None)
    assert seen == ["ready", "stopping"]
    assert module.ANSWER_SECONDS > 0
