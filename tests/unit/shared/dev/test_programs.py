"""The command lines of a stack's parts are those that the programs understand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tachikoma.cli.components import COMPONENTS
from tachikoma.dev.folder import StackFolder
from tachikoma.dev.part import Part
from tachikoma.dev.programs import Programs, redis_user_of
from tachikoma.redis.users import BEAT, FLOWER, ORCHESTRATOR, agent_user


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    folder = StackFolder(tmp_path)
    return Programs(folder, "unix:///redis.sock", folder.identity, {"TACHIKOMA_POLL": "1s"})


def every_part(programs: Programs) -> dict[str, Part]:
    return {
        "orchestrator": programs.orchestrator("127.0.0.1:0"),
        "submitter": programs.submitter(),
        "beat": programs.beat("beat-2"),
        "worker": programs.worker("agent-1"),
        "flower": programs.flower("127.0.0.1:0"),
    }


def test_every_option_is_one_of_the_program(programs: Programs) -> None:
    components = {component.name: component for component in COMPONENTS}
    for name, part in every_part(programs).items():
        command = part._command
        assert command[1:4] == ["-m", "tachikoma", name]
        known = {option for parameter in components[name].load().params for option in parameter.opts}
        assert {word for word in command[4:] if word.startswith("--")} <= known | {"--ready-fd"}
        assert "--ready-fd" in known


def test_each_part_has_its_identity_its_password_and_its_log(programs: Programs, tmp_path: Path) -> None:
    parts = every_part(programs)
    expected = {
        "orchestrator": ("orchestrator", ORCHESTRATOR), "submitter": ("orchestrator", ORCHESTRATOR),
        "beat": ("beat", BEAT), "worker": ("agent-1", agent_user("agent-1")), "flower": ("flower", FLOWER),
    }  # fmt: skip
    for name, (identity, user) in expected.items():
        command, environment = parts[name]._command, parts[name]._environment
        assert command[command.index("--identity") + 1] == str(tmp_path / "identities" / identity)
        assert command[command.index("--redis-url") + 1] == "unix:///redis.sock"
        assert environment["TACHIKOMA_REDIS_PASSWORD_FILE"] == str(programs.folder.redis_passwords.path(user))
        assert environment["TACHIKOMA_POLL"] == "1s"
    assert parts["beat"]._log == tmp_path / "logs" / "beat-2.log"
    assert parts["worker"].name == "agent-1"
    assert "TACHIKOMA_SUBMITTER_PASSWORD_FILE" in parts["submitter"]._environment


def test_two_stacks_share_no_cgroup(programs: Programs) -> None:
    other = Programs(StackFolder(Path("/elsewhere")), "unix:///x", str, {})
    names = {
        part._command[part._command.index("--cgroup-name") + 1]
        for part in (programs.worker("agent-1"), programs.worker("agent-2"), other.worker("agent-1"))
    }
    assert len(names) == 2


@pytest.mark.parametrize(
    ("part", "user"),
    [
        ("orchestrator", ORCHESTRATOR),
        ("submitter", ORCHESTRATOR),
        ("beat", BEAT),
        ("flower", FLOWER),
        ("a", agent_user("a")),
    ],
)
def test_the_redis_user_of_a_part(part: str, user: str) -> None:
    assert redis_user_of(part) == user
