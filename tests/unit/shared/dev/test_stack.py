"""The order in which a stack starts and stops its parts. Real stacks run in the end-to-end tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tachikoma.dev.part import Part
from tachikoma.dev.redis_server import RedisServer
from tachikoma.dev.stack import Stack
from tachikoma.errors import ConfigurationError


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens to the parts; none of them is a process."""
    seen: list[str] = []

    def note(what: str, answer: Any = None) -> Any:
        def call(self: Part, *_: object, **__: object) -> Any:
            seen.append(f"{what} {self.name}")
            return answer

        return call

    monkeypatch.setattr(RedisServer, "forget_agents", lambda _, agents: seen.append(f"forget {' '.join(agents)}"))
    monkeypatch.setattr(Part, "start", note("start"))
    monkeypatch.setattr(Part, "start_until_ready", note("start", "http://127.0.0.1:1"))
    monkeypatch.setattr(Part, "wait_until", note("wait for"))
    monkeypatch.setattr(Part, "terminate", note("terminate"))
    monkeypatch.setattr(Part, "stop", note("stop"))
    monkeypatch.setattr(Part, "run_once", note("sweep"))
    return seen


def test_everything_starts_in_the_order_of_its_needs_and_stops_in_reverse(tmp_path: Path, events: list[str]) -> None:
    with Stack(tmp_path, agents=2, schedules="app:app", flower="127.0.0.1:0", redis_server=Path("/x")) as stack:
        assert events == [
            "start redis", "wait for redis", "start orchestrator", "start agent-1", "start agent-2",
            "wait for orchestrator", "start submitter", "start beat", "start flower",
        ]  # fmt: skip
        assert [part.name for part in stack.parts] == [
            "redis", "orchestrator", "agent-1", "agent-2", "submitter", "beat", "flower",
        ]  # fmt: skip
        assert stack.flower_url == "http://127.0.0.1:1"
        assert stack.flower is not None
        assert "127.0.0.1:1" in stack.flower._command
        assert stack.flower_users.exists()
        runtime = stack.socket.parent
        assert runtime.exists()
        # One worker was killed, and left its spawner.
        (tmp_path / "agents" / "agent-2").mkdir(parents=True)
        (tmp_path / "agents" / "agent-2" / "spawner.sock").touch()
        events.clear()
    assert events == [
        "stop flower", "terminate agent-1", "terminate agent-2", "stop agent-1", "stop agent-2", "sweep agent-2",
        "stop beat", "stop submitter", "stop orchestrator", "stop redis",
    ]  # fmt: skip
    assert not runtime.exists()


def test_a_start_that_fails_stops_what_was_started(
    tmp_path: Path, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Stack) -> None:
        raise ConfigurationError("the orchestrator did not start")

    monkeypatch.setattr(Stack, "start_orchestrator", fail)
    stack = Stack(tmp_path, redis_server=Path("/x"))
    with pytest.raises(ConfigurationError, match="did not start"):
        stack.start()
    assert events[-2:] == ["stop orchestrator", "stop redis"]
    # Unlocked, so that the next one can use the folder.
    with pytest.raises(ConfigurationError, match="did not start"):
        Stack(tmp_path, redis_server=Path("/x")).start()


def test_without_options_only_what_is_needed_runs(tmp_path: Path, events: list[str]) -> None:
    with Stack(tmp_path, redis_server=Path("/x"), environment={"TACHIKOMA_POLL": "5s"}) as stack:
        assert [part.name for part in stack.parts] == ["redis", "orchestrator", "agent-1"]
        assert not stack.flower_users.exists()
        assert {path.name for path in (tmp_path / "identities").iterdir()} == {"agent-1", "orchestrator", "user"}
        assert stack.orchestrator._environment["TACHIKOMA_POLL"] == "5s"
        assert stack.profile().identity == stack.identity("user")
        assert stack.redis_url_of("agent-1") == stack.redis_url == f"unix://{stack.socket}"


def test_agents_of_earlier_starts_are_forgotten_before_the_orchestrator_lists_them(
    tmp_path: Path, events: list[str]
) -> None:
    for number in (1, 2, 3):
        (tmp_path / "agents" / f"agent-{number}").mkdir(parents=True)
    with Stack(tmp_path, redis_server=Path("/x")):
        assert events[:4] == ["start redis", "wait for redis", "forget agent-2 agent-3", "start orchestrator"]


def test_every_part_shares_the_lock_of_the_parts(tmp_path: Path, events: list[str]) -> None:
    with Stack(tmp_path, agents=2, submitter=True, redis_server=Path("/x")) as stack:
        assert stack._runtime is not None
        assert [part._inherited for part in stack.parts] == [(stack._runtime.parts_lock,)] * 5


def test_a_part_that_ended_is_found(tmp_path: Path, events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with Stack(tmp_path, redis_server=Path("/x")) as stack:
        monkeypatch.setattr(Part, "alive", property(lambda part: part.name != "agent-1"))
        assert stack.failed_part() is stack.agents["agent-1"]
        monkeypatch.setattr(Part, "alive", property(lambda _: True))
        assert stack.failed_part() is None
