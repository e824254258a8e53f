"""The plan of an orchestrator's host: whole, once, and with settings that the orchestrator accepts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tachikoma.client.profile import Profile
from tachikoma.config.settings import read_settings
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.policy.decide import PolicySet
from tachikoma.setup.layout import Layout
from tachikoma.setup.steps import Host, Units, apply, pending
from tachikoma_orchestrator.commands.setup.choices import Choices
from tachikoma_orchestrator.commands.setup.plan import OrchestratorPlan
from tachikoma_orchestrator.processes.settings import OrchestratorSettings

PLAIN = Host(owners=False, services=False)
CHOICES = Choices(host="a.example.org", trust_domain="example.org", operator="ada")
ELSEWHERE = CHOICES.model_copy(update={"redis_url": "rediss://redis.example.org:6379"})


def made(folder: Path, choices: Choices = CHOICES, *, durable: bool = True) -> OrchestratorPlan:
    plan = OrchestratorPlan(Layout(folder), choices, durable, "/usr/sbin/redis-server")
    assert list(apply(plan.steps(), PLAIN)) != []
    return plan


@pytest.mark.parametrize("choices", [CHOICES, ELSEWHERE], ids=["own", "existing"])
def test_a_second_setup_changes_nothing(tmp_path: Path, choices: Choices) -> None:
    plan = made(tmp_path, choices)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert list(apply(plan.steps(), PLAIN)) == []
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("choices", "durable"), [(CHOICES, True), (CHOICES, False), (ELSEWHERE, True)])
def test_the_orchestrator_accepts_its_settings_and_the_policy(
    tmp_path: Path, choices: Choices, durable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path, choices, durable=durable)
    for line in (tmp_path / "etc/tachikoma/orchestrator.env").read_text().splitlines():
        if not line.startswith("#"):
            monkeypatch.setenv(*line.split("=", 1))
    settings = read_settings(OrchestratorSettings, "orchestrator")
    assert settings.audit_durable is durable
    assert settings.redis_url == choices.reached_redis
    assert str(settings.join_address) == "a.example.org:8535"
    assert settings.ca is not None
    for path in (settings.ca, settings.redis_password_file, settings.enroller_password_file, settings.policy):
        assert path is not None
        assert path.exists()
    PolicySet.load(settings.policy)
    assert isinstance(settings.identity, Path)
    FileSvidSource(settings.identity).current().verify()


def test_the_operator_gets_a_profile_with_an_identity(tmp_path: Path) -> None:
    plan = made(tmp_path)
    profile = Profile.load(plan.layout.home / ".config/tachikoma/profile.json")
    assert (profile.address, profile.server_name) == ("a.example.org:8534", "orchestrator.example.org")
    assert isinstance(profile.identity, Path)
    assert str(FileSvidSource(profile.identity).current().spiffe_id) == "spiffe://example.org/user/ada"


def test_keys_and_passwords_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    made(tmp_path)
    private = [*tmp_path.rglob("*_key.pem"), *(tmp_path / "etc/tachikoma/redis").iterdir()]
    assert len(private) >= 12
    assert {oct(path.stat().st_mode & 0o777) for path in private} == {"0o600"}


def test_another_port_changes_the_settings_and_nothing_that_is_the_operators(tmp_path: Path) -> None:
    made(tmp_path)
    policy = tmp_path / "etc/tachikoma/policy/main.yaml"
    policy.write_text(policy.read_text() + "# mine\n")
    changed = CHOICES.model_copy(update={"port": 9000})
    plan = OrchestratorPlan(Layout(tmp_path), changed, durable=True)
    names = {words.rpartition("/")[2] for _, words in pending(plan.steps(), PLAIN)}
    assert names == {"setup.toml", "orchestrator.env", "tachikoma-redis.service"}
    list(apply(plan.steps(), PLAIN))
    assert policy.read_text().endswith("# mine\n")


def test_units_of_redis_are_only_for_a_redis_of_this_host(tmp_path: Path) -> None:
    names = [OrchestratorPlan(Layout(tmp_path), choices, durable=True).units() for choices in (CHOICES, ELSEWHERE)]
    assert [isinstance(units, Units) and "tachikoma-redis.service" in units.names for units in names] == [True, False]
