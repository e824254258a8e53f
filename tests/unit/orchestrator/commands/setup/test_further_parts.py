"""The further parts of an orchestrator's host: chosen, set up with what they read, and told of when they go."""

from __future__ import annotations

from pathlib import Path

import pytest

from tachikoma.config.settings import read_settings
from tachikoma.errors import ConfigurationError
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.setup.layout import Layout
from tachikoma.setup.steps import Host, apply
from tachikoma_orchestrator.commands.setup import further_parts
from tachikoma_orchestrator.commands.setup.choices import Choices, Part
from tachikoma_orchestrator.commands.setup.plan import OrchestratorPlan
from tachikoma_orchestrator.processes.settings import OrchestratorSettings
from tachikoma_orchestrator.schedules.sources import open_schedules

PLAIN = Host(owners=False, services=False)
EVERY = tuple(Part)


def plan(folder: Path, *parts: Part) -> OrchestratorPlan:
    choices = Choices(host="a.example.org", trust_domain="example.org", operator="ada", parts=parts)
    return OrchestratorPlan(Layout(folder), choices, True, "/usr/sbin/redis-server")


def variables(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if not line.startswith("#"))


def test_without_a_choice_there_is_none(tmp_path: Path) -> None:
    made = plan(tmp_path)
    list(apply(made.steps(), PLAIN))
    names = {path.name for path in tmp_path.rglob("*")}
    assert not names & {"beat.env", "flower.env", "schedules", "tachikoma-submitter.service", "tachikoma-beat"}
    assert "TACHIKOMA_SCHEDULES" not in variables(tmp_path / "etc/tachikoma/orchestrator.env")
    assert list(made.further.notices()) == []


@pytest.mark.parametrize("part", [Part.BEAT, Part.FLOWER])
def test_each_part_has_files_that_exist_and_an_identity_of_its_own(tmp_path: Path, part: Part) -> None:
    list(apply(plan(tmp_path, *EVERY).steps(), PLAIN))
    found = variables(tmp_path / f"etc/tachikoma/{part}.env")
    assert found["TACHIKOMA_REDIS_URL"] == "rediss://a.example.org:6379"
    places = [Path(value) for value in found.values() if value.startswith("/")]
    assert len(places) == 3
    assert all(place.exists() for place in places)
    identity = FileSvidSource(Path(found["TACHIKOMA_IDENTITY"])).current()
    assert str(identity.spiffe_id) == f"spiffe://example.org/service/{part}"
    unit = (tmp_path / f"etc/systemd/system/tachikoma-{part}.service").read_text()
    assert f"{tmp_path}/etc/tachikoma/{part}.env" in unit


def test_orchestrator_and_beat_read_the_same_schedules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list(apply(plan(tmp_path, Part.SUBMITTER, Part.BEAT).steps(), PLAIN))
    environment = variables(tmp_path / "etc/tachikoma/orchestrator.env")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    folder = environment["TACHIKOMA_SCHEDULES"]
    assert folder == variables(tmp_path / "etc/tachikoma/beat.env")["TACHIKOMA_SCHEDULES"]
    open_schedules(folder)
    assert read_settings(OrchestratorSettings, "orchestrator").schedules == folder


def test_a_schedule_of_the_operator_stays(tmp_path: Path) -> None:
    list(apply(plan(tmp_path, *EVERY).steps(), PLAIN))
    file = tmp_path / "etc/tachikoma/schedules/main.yaml"
    file.write_text("schedules: []  # mine\n")
    assert list(apply(plan(tmp_path, *EVERY).steps(), PLAIN)) == []
    assert file.read_text().endswith("# mine\n")


def test_flower_has_one_user_with_a_password_that_stays(tmp_path: Path) -> None:
    made = plan(tmp_path, Part.FLOWER)
    list(apply(made.steps(), PLAIN))
    user, _, password = made.further.flower_users.read_text().strip().partition(":")
    assert (user, len(password)) == ("ada", 64)
    assert made.further.flower_users.stat().st_mode & 0o777 == 0o600
    assert list(apply(made.steps(), PLAIN)) == []
    assert any("http://127.0.0.1:5555" in notice for notice in made.further.notices())


def test_parts_that_are_no_longer_chosen_are_left_to_the_operator(tmp_path: Path) -> None:
    list(apply(plan(tmp_path, *EVERY).steps(), PLAIN))
    fewer = plan(tmp_path, Part.SUBMITTER)
    list(apply(fewer.steps(), PLAIN))
    notices = list(fewer.further.notices())
    assert [notice.partition("; ")[0] for notice in notices] == [
        f"no longer used: systemctl disable --now tachikoma-{part}" for part in ("beat", "flower")
    ]


def test_the_certificates_are_among_those_that_the_timer_renews(tmp_path: Path) -> None:
    chosen = plan(tmp_path, *EVERY)
    list(apply(chosen.steps(), PLAIN))
    (chosen.further.identity(Part.FLOWER) / "svid.pem").unlink()
    assert any("tachikoma-flower" in words for words in apply(chosen.certificates(), PLAIN))
    renewal = (tmp_path / "etc/systemd/system/tachikoma-renewal.service").read_text()
    for part in (Part.BEAT, Part.FLOWER):
        assert f"-{chosen.layout.state(part)}" in renewal.replace("=", " ").split()


def test_flower_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(further_parts, "find_spec", lambda _: None)
    plan(tmp_path, Part.SUBMITTER).further.check()
    with pytest.raises(ConfigurationError, match=r"tachikoma-exec\[flower\]"):
        plan(tmp_path, Part.FLOWER).further.check()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["beat"], "only the submitter admits their requests"),
        (["redis"], "'submitter', 'beat' or 'flower'"),
        ([""], "'submitter', 'beat' or 'flower'"),
    ],
)
def test_a_wrong_choice_says_what_to_do(tmp_path: Path, parts: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Choices.read(tmp_path / "none", parts=parts)


def test_the_choice_is_kept_in_the_order_of_starts(tmp_path: Path) -> None:
    chosen = Choices.read(tmp_path / "none", host="a", parts=["flower", "beat", "submitter", "beat"])
    (tmp_path / "setup.toml").write_text(chosen.text())
    assert Choices.read(tmp_path / "setup.toml").parts == EVERY
    assert Choices.read(tmp_path / "setup.toml", parts=[]).parts == ()
