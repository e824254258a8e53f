"""The plan of an orchestrator's host: whole, once, and with settings that the orchestrator accepts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tachikoma.client.profile import Profile
from tachikoma.config.settings import read_settings
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.join_token import Joined
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
    plan = OrchestratorPlan(Layout(tmp_path), changed, True, "/usr/sbin/redis-server", CHOICES)
    names = {words.rpartition("/")[2] for _, words in pending(plan.steps(), PLAIN)}
    assert names == {
        "setup.toml",
        "orchestrator.env",
        "profile.json to a.example.org:9000",
        "joined.json to a.example.org:9000",
    }
    list(apply(plan.steps(), PLAIN))
    assert policy.read_text().endswith("# mine\n")
    # Members that join from now on get the new address.
    assert "TACHIKOMA_RENEW_ADDRESS=a.example.org:9000\n" in (tmp_path / "etc/tachikoma/orchestrator.env").read_text()
    profile = Profile.load(plan.layout.home / ".config/tachikoma/profile.json")
    assert isinstance(profile.identity, Path)
    joined = Joined.load(profile.identity)
    assert joined is not None
    assert (profile.address, joined.address) == ("a.example.org:9000", "a.example.org:9000")
    assert list(apply(plan.steps(), PLAIN)) == []


RESTARTED = {
    "bind": ("127.0.0.1", {"redis", "orchestrator"}),
    "port": (9000, {"orchestrator"}),
    "join_port": (9001, {"orchestrator"}),
    "redis_port": (9002, {"redis", "orchestrator"}),
    "host": ("b.example.org", {"redis", "orchestrator"}),
    "operator": ("bob", set()),
}


@pytest.mark.parametrize("name", RESTARTED)
def test_each_choice_restarts_exactly_the_units_that_read_it(tmp_path: Path, name: str) -> None:
    value, names = RESTARTED[name]
    changed = CHOICES.model_copy(update={name: value})
    before, after = (
        {unit.name: unit.digest() for unit in plan.units().units}
        for plan in (
            OrchestratorPlan(Layout(tmp_path), CHOICES, durable=True),
            OrchestratorPlan(Layout(tmp_path), changed, durable=True, previous=CHOICES),
        )
    )
    assert {unit for unit, digest in after.items() if digest != before[unit]} == {
        f"tachikoma-{unit}.service" for unit in names
    }


@pytest.mark.parametrize("name", RESTARTED)
def test_each_choice_takes_effect_once(tmp_path: Path, name: str) -> None:
    made(tmp_path)
    changed = CHOICES.model_copy(update={name: RESTARTED[name][0]})
    plan = OrchestratorPlan(Layout(tmp_path), changed, True, "/usr/sbin/redis-server", CHOICES)
    assert len(list(apply(plan.steps(), PLAIN))) > 1
    assert list(apply(plan.steps(), PLAIN)) == []
    if name == "operator":
        assert "user/bob" in plan.policy.read_text()
        assert not plan.lacks_operator()
    elif name not in ("host", "redis_port"):
        changed_files = "".join(path.read_text() for path in (tmp_path / "etc/tachikoma").glob("*.*") if path.is_file())
        assert str(RESTARTED[name][0]) in changed_files


def test_an_edited_policy_that_does_not_name_the_new_operator_is_reported(tmp_path: Path) -> None:
    policy = made(tmp_path).policy
    policy.write_text(policy.read_text() + "# mine\n")
    changed = CHOICES.model_copy(update={"operator": "bob"})
    plan = OrchestratorPlan(Layout(tmp_path), changed, durable=True, previous=CHOICES)
    list(apply(plan.steps(), PLAIN))
    assert plan.lacks_operator()
    assert "# mine" in policy.read_text()


def test_units_of_redis_are_only_for_a_redis_of_this_host(tmp_path: Path) -> None:
    names = [OrchestratorPlan(Layout(tmp_path), choices, durable=True).units() for choices in (CHOICES, ELSEWHERE)]
    assert [isinstance(units, Units) and "tachikoma-redis.service" in units.names for units in names] == [True, False]
