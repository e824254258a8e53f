"""`tachikoma dev` without a stack: the profile it writes, and what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tachikoma import AgentInfo, Profile
from tachikoma.client.profile import PROFILE_VARIABLE
from tachikoma.dev import command
from tachikoma.dev.stack import Stack


@pytest.fixture
def usual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config" / "profile.json"
    monkeypatch.setenv(PROFILE_VARIABLE, str(path))
    return path


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    stack = Stack(tmp_path / "data", flower="127.0.0.1:5555")
    stack.data.mkdir()
    stack.address, stack.flower_url = "127.0.0.1:8534", "http://127.0.0.1:5555"
    return stack


def saved(path: Path, identity: Path) -> None:
    identity.mkdir(parents=True, exist_ok=True)
    Profile(address="elsewhere:1", server_name="x", identity=identity).save(path)


def test_the_first_profile_is_written_where_clients_look(stack: Stack, usual: Path) -> None:
    assert command.write_profile(stack) == (usual, True)
    assert Profile.load(usual) == stack.profile()
    # Once more, and with another address.
    stack.address = "127.0.0.1:9999"
    assert command.write_profile(stack) == (usual, True)
    assert Profile.load(usual).address == "127.0.0.1:9999"


def test_a_profile_of_another_orchestrator_is_not_changed(stack: Stack, usual: Path, tmp_path: Path) -> None:
    saved(usual, tmp_path / "other")
    before = usual.read_bytes()
    assert command.write_profile(stack) == (stack.data / "profile.json", False)
    assert usual.read_bytes() == before
    assert Profile.load(stack.data / "profile.json") == stack.profile()


def test_a_profile_that_is_of_no_use_any_more_is_replaced(stack: Stack, usual: Path, tmp_path: Path) -> None:
    saved(usual, tmp_path / "other")
    (tmp_path / "other").rmdir()
    assert command.write_profile(stack) == (usual, True)
    usual.write_text("{broken")
    assert command.write_profile(stack) == (usual, True)


def lines(stack: Stack, *, usual: bool = True, **agent: Any) -> list[str]:
    agents = [AgentInfo(id="agent-1", **agent)]
    return list(command.introduction(stack, agents, Path("/profile.json"), usual=usual))


def test_the_introduction_says_where_everything_is_and_what_to_do(stack: Stack) -> None:
    said = lines(stack)
    named = {line.split("  ")[0]: line for line in said if line}
    assert {"orchestrator", "agents", "you", "policy", "profile", "logs", "audit log", "flower"} <= set(named)
    assert str(stack.user) in named["you"]
    assert said[-2:] == ["  tachikoma exec agent-1 -- uname -a", "Ctrl-C stops everything."]
    assert not any(line.startswith("not enforced") for line in said)


def test_what_this_host_cannot_enforce_is_said_once(stack: Stack) -> None:
    said = lines(stack, warnings=("no cgroups", "no cgroups"))
    assert [line for line in said if line.startswith("not enforced")] == ["not enforced  no cgroups"]


def test_with_a_profile_elsewhere_the_command_names_it(stack: Stack) -> None:
    said = lines(stack, usual=False)
    assert f"  {PROFILE_VARIABLE}=/profile.json tachikoma exec agent-1 -- uname -a" in said
    assert "Your own client profile belongs to another orchestrator and was not changed." in said


def test_a_part_that_ends_by_itself_ends_all(
    monkeypatch: pytest.MonkeyPatch, usual: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failed:
        def failure(self) -> str:
            return "agent-1 ended with status 1"

    class FakeStack(Stack):
        def start(self) -> None:
            self.data.mkdir()

        def stop(self) -> None:
            stopped.append(True)

        def failed_part(self) -> Any:
            return Failed()

    class FakeClient:
        def __init__(self, profile: Profile) -> None:
            pass

        def __enter__(self) -> FakeClient:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def agents(self) -> list[AgentInfo]:
            return [AgentInfo(id="agent-1"), AgentInfo(id="agent-2", warnings=("of an earlier start",))]

    stopped: list[bool] = []
    monkeypatch.setattr(command, "Stack", FakeStack)
    monkeypatch.setattr("tachikoma.dev.stack.Client", FakeClient)
    monkeypatch.setattr(command, "CHECK_SECONDS", 0)
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    with pytest.raises(command.ConfigurationError, match="agent-1 ended with status 1"):
        command.run_dev(agents=1, data=str(tmp_path / "data"), listen="127.0.0.1:0")
    assert stopped == [True]
    # The ledger also knows an agent of an earlier start.
    shown = capsys.readouterr().out
    assert "agents        agent-1\n" in shown
    assert "of an earlier start" not in shown
