"""`tachikoma doctor`."""

from __future__ import annotations

import json
import os
import pwd
import resource
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from authority import Authority
from tachikoma import Unavailable
from tachikoma.cli.commands import doctor
from tachikoma.client.profile import Profile
from tachikoma.config.settings import PREFIX
from tachikoma.diagnosis import installed
from tachikoma.identity.files import KEY_FILE
from tachikoma.vocabulary.agents import AgentInfo


class Agents:
    """A client that knows some agents, or none at all."""

    answer: Any = ()

    def __init__(self, profile: Profile, **_: object) -> None:
        self.profile = profile

    def __enter__(self) -> Agents:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def agents(self) -> tuple[AgentInfo, ...]:
        if isinstance(self.answer, Exception):
            raise self.answer
        found: tuple[AgentInfo, ...] = self.answer
        return found


@pytest.fixture(autouse=True)
def access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A profile with a usable identity, and no settings."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    Authority().write(tmp_path / "identity", "spiffe://tachikoma.local/user/alice")
    (tmp_path / "identity" / KEY_FILE).chmod(0o600)
    profile = tmp_path / "profile.json"
    Profile(address="localhost:1", server_name="x", identity=tmp_path / "identity").save(profile)
    monkeypatch.setenv("TACHIKOMA_PROFILE", str(profile))
    monkeypatch.setattr(doctor, "Client", Agents)
    monkeypatch.setattr(Agents, "answer", ())
    return profile


def findings(run: Any, *arguments: str) -> list[dict[str, str]]:
    done = run("doctor", *arguments, "-o", "json")
    report = json.loads(done.out)
    assert done.code == bool(report["findings"])
    assert report["part"] == (arguments[0] if arguments else "client")
    found: list[dict[str, str]] = report["findings"]
    return found


def test_nothing_is_wrong(run: Any) -> None:
    assert findings(run) == []
    assert run("doctor").out.endswith(": nothing is wrong\n")


def test_a_missing_profile_is_found(run: Any, access: Path) -> None:
    access.unlink()
    (finding,) = findings(run)
    assert "there is no client profile" in finding["what"]


def test_an_identity_that_others_may_read_is_found(run: Any, access: Path) -> None:
    (access.parent / "identity" / KEY_FILE).chmod(0o644)
    (finding,) = findings(run)
    assert finding["remedy"].startswith("run: chmod 600 ")


def test_an_orchestrator_that_gives_no_answer_is_found(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Agents, "answer", Unavailable("nothing listens at localhost:1"))
    (finding,) = findings(run)
    assert (finding["where"], finding["what"]) == (
        "localhost:1",
        "the orchestrator gives no answer: nothing listens at localhost:1",
    )


def test_agents_that_are_offline_or_limited_are_found(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    known = (
        AgentInfo(id="web-1", online=True),
        AgentInfo(id="web-2"),
        AgentInfo(id="web-3", online=True, warnings=("no cgroup for memory",)),
        AgentInfo(id="web-4", revoked=True),
    )
    monkeypatch.setattr(Agents, "answer", known)
    assert [(finding["where"], finding["what"]) for finding in findings(run)] == [
        ("web-2", "the agent is offline"),
        ("web-3", "no cgroup for memory"),
    ]
    assert run("doctor").out.splitlines()[0] == "web-2: the agent is offline"


def test_wrong_settings_of_a_part_are_found(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACHIKOMA_SLOTS", "many")
    (finding,) = findings(run, "worker")
    assert "TACHIKOMA_SLOTS: " in finding["what"]
    assert "TACHIKOMA_AGENT_ID is not set" in finding["what"]


def test_other_versions_of_agents_are_found(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = version("tachikoma-exec")
    known = (
        AgentInfo(id="web-1", online=True, version=own),
        AgentInfo(id="web-2", online=True, version="0.1.0"),
        AgentInfo(id="web-3", online=True, version="0.1.0"),
    )
    monkeypatch.setattr(Agents, "answer", known)
    (finding,) = findings(run)
    assert finding["what"] == f"2 agents run version 0.1.0, and this program is {own}"


def test_checks_that_need_more_rights_are_named_if_they_were_not_made(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TACHIKOMA_REDIS_URL", f"unix://{tmp_path}/none")
    monkeypatch.setenv("TACHIKOMA_POLICY", str(tmp_path))
    report = json.loads(run("doctor", "orchestrator", "-o", "json").out)
    (sentence,) = report["unchecked"]
    assert sentence.startswith("settings, users and memory of Redis: this user can read no password 'check'")
    assert f"not checked: {sentence}\n" in run("doctor", "orchestrator").out


def test_a_part_that_is_installed_is_checked_with_the_settings_of_its_unit(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(installed, "UNIT_FOLDERS", (tmp_path,))
    file, unit = tmp_path / "worker.env", tmp_path / "tachikoma-worker.service"
    file.write_text("TACHIKOMA_AGENT_ID=web-1\nTACHIKOMA_SLOTS=many\n")
    unit.write_text(f"[Service]\nUser={pwd.getpwuid(os.geteuid()).pw_name}\nEnvironmentFile={file}\n")
    done = run("doctor", "worker", "-o", "json")
    report = json.loads(done.out)
    assert report["settings"] == f"tachikoma-worker.service ({file})"
    assert "TACHIKOMA_AGENT_ID" not in report["findings"][0]["what"]
    assert f"settings of tachikoma-worker.service ({file}): 1 finding" in run("doctor", "worker", "--installed").out
    # Settings of this shell are those that are meant, until --installed says otherwise.
    os.environ.pop("TACHIKOMA_AGENT_ID")
    os.environ["TACHIKOMA_SLOTS"] = "some"
    assert json.loads(run("doctor", "worker", "-o", "json").out)["settings"] == "environment"
    assert "TACHIKOMA_AGENT_ID is not set" not in run("doctor", "worker", "--installed").out


def test_a_part_that_is_not_installed_is_refused_with_the_option(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "UNIT_FOLDERS", (tmp_path,))
    error = str(run("doctor", "worker", "--installed").error)
    assert error.startswith("the worker is not installed on this host: there is no tachikoma-worker.service")


def test_logs_of_a_part_are_not_in_the_output(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACHIKOMA_AGENT_ID", "web-1")
    monkeypatch.setenv("TACHIKOMA_REDIS_URL", f"unix://{tmp_path}/none")
    monkeypatch.setenv("TACHIKOMA_DATA", str(tmp_path))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    report = json.loads(run("doctor", "worker", "-o", "json").out)
    assert "TACHIKOMA_SLOTS" in [finding["where"] for finding in report["findings"]]
