"""Expectations of a policy, kept in a file beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tachikoma.errors import ConfigurationError
from tachikoma.policy.decide import PolicySet
from tachikoma.policy.tools.expectations import check, load_expectations

POLICY = PolicySet.parse(
    """
policies:
  - {name: web, subjects: [alice], agents: [web-1], allowedCommands: [/bin/true], allowedEnvironment: [X]}
  - {name: asked, subjects: [alice], agents: [web-1], allowedCommands: ["/bin/echo *"], requireApproval: true,
     approvers: [boss]}
""",
    "policy.yaml",
)
BASE = "  - {as: alice, agent: web-1, command: "


def outcomes(tmp_path: Path, *lines: str) -> list[str]:
    file = tmp_path / "policy.test.yaml"
    file.write_text("tests:\n" + "".join(f"{BASE}{line}}}\n" for line in lines))
    return [outcome.mistake for outcome in check(POLICY, load_expectations(file))]


def test_what_is_decided_as_expected_has_no_mistake(tmp_path: Path) -> None:
    assert (
        outcomes(
            tmp_path,
            "/bin/true, expect: allow, policy: web, rule: allowedCommands",
            "/bin/echo 'a b', expect: approval, policy: asked",
            "[/bin/echo, a b], expect: approval",
            "/bin/true, user: root, expect: deny, rule: allowedUsers",
            "/bin/true, environment: {X: y}, timeout: 5m, expect: allow",
            "/bin/true, labels: {a: b}, from: 10.0.0.1, expect: allow",
        )
        == [""] * 6
    )


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ("/bin/false, expect: allow", "is denied by "),
        ("/bin/true, expect: deny", "is allowed by web@"),
        ("/bin/echo x, expect: allow", "is allowed only with an approval by asked@"),
        ("/bin/true, expect: allow, policy: other", "is decided by web@"),
        (
            "/bin/true, user: root, expect: deny, rule: allowTty",
            "is decided by the field allowedUsers, not by",
        ),
    ],
)
def test_a_difference_is_named(tmp_path: Path, line: str, mistake: str) -> None:
    (found,) = outcomes(tmp_path, line)
    assert found.startswith(mistake)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tests: [", "not YAML"),
        ("tests: []", "tests: "),
        ("tests: [{as: a, agent: b, command: x, expect: maybe}]", "tests.0.expect: "),
        ("tests: [{as: a, agent: b, command: x, workDir: rel, expect: deny}]", "is not an absolute path"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "x.test.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match="x.test.yaml.*" + message.replace("(", r"\(")):
        load_expectations(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read the expectations .*none\.yaml"):
        load_expectations(tmp_path / "none.yaml")
