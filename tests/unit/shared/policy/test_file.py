"""Policy files: what is read, and the place of each mistake."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.config.yaml_files import MAX_FILE_BYTES
from tachikoma.errors import ConfigurationError
from tachikoma.policy.decide import PolicySet
from tachikoma.vocabulary.policies import ExecPolicy

ALICE = "spiffe://tachikoma.local/user/alice"

GOOD = """\
operators: ["spiffe://tachikoma.local/user/alice"]
policies:
  - name: web
    subjects: ["spiffe://tachikoma.local/user/*"]
    agents: ["web-*"]
    allowedCommands:
      - "/usr/bin/systemctl {status,restart} nginx.service"
      - /usr/bin/uptime
    maxTimeout: 5m
"""


def test_a_file_is_read() -> None:
    chosen = PolicySet.parse(GOOD, "policy.yaml")
    assert [policy.policy.name for policy in chosen.policies] == ["web"]
    assert chosen.policies[0].policy.max_timeout == timedelta(minutes=5)
    assert isinstance(chosen.policies[0].policy, ExecPolicy)
    assert chosen.is_operator(ALICE)
    assert len(chosen.digest) == 64


def test_an_empty_list_of_policies_is_a_file_that_allows_nothing() -> None:
    assert PolicySet.parse("policies: []", "p").policies == ()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        # the place of the field, and its name
        (GOOD.replace("allowedCommands:", "alowedCommands:"), "p:6:5: policies[0].alowedCommands: unknown field"),
        (GOOD.replace("maxTimeout: 5m", "maxTimeout: soon"), "p:9:5: policies[0].maxTimeout:"),
        (GOOD.replace("maxTimeout: 5m", "maxTimeout: 0s"), "p:9:5: policies[0].maxTimeout: must be longer than zero"),
        (GOOD.replace("maxTimeout: 5m", "maxTimeout: 8d"), "p:9:5: policies[0].maxTimeout:"),
        (GOOD.replace("name: web", "name: we.b"), "p:3:5: policies[0].name:"),
        (GOOD.replace('agents: ["web-*"]', "agents: []"), "p:5:5: policies[0].agents:"),
        (GOOD.replace('agents: ["web-*"]', "agents: web"), "p:5:5: policies[0].agents:"),
        (GOOD.replace('    agents: ["web-*"]\n', ""), "p:3:5: policies[0].agents: is missing"),
        (
            GOOD.replace("    maxTimeout: 5m", "    allowedNetworks:\n      - 10.0.0.0/8\n      - 10.1.2.3/8"),
            "p:11:9: policies[0].allowedNetworks[1]: '10.1.2.3/8' is an address in a network; write 10.0.0.0/8",
        ),
        (
            GOOD.replace("maxTimeout: 5m", "allowedNetworks: [here]"),
            "p:9:23: policies[0].allowedNetworks[0]: 'here' is not a network",
        ),
        (GOOD.replace("- /usr/bin/uptime", "- 5"), "p:8:9: policies[0].allowedCommands[1]:"),
        # patterns
        (GOOD.replace("- /usr/bin/uptime", "- uptime"), "p:8:9: policies[0].allowedCommands[1]: 'uptime': the"),
        (GOOD.replace("{status,restart}", "{status"), "p:7:9: policies[0].allowedCommands[0]:"),
        (GOOD.replace("/user/*", "/user/["), "p:4:16: policies[0].subjects[0]:"),
        (GOOD.replace("web-*", "***"), "p:5:14: policies[0].agents[0]:"),
        (GOOD.replace("user/alice", "user/{alice"), "p:1:13: operators"),
        (GOOD + "    allowedUsers: ['***']\n", "p:10:20: policies[0].allowedUsers[0]:"),
        (GOOD + "    allowedWorkDirs: ['[']\n", "p:10:23: policies[0].allowedWorkDirs[0]:"),
        (GOOD + "    allowedEnvironment: ['{']\n", "p:10:26: policies[0].allowedEnvironment[0]:"),
        (GOOD + "    deniedCommands: [x, bin/rm]\n", "p:10:25: policies[0].deniedCommands[1]:"),
        # the whole
        ("", "p:1:1: must be a mapping"),
        ("- x", "p:1:1: must be a mapping"),
        ("text", "p:1:1: must be a mapping"),
        ("{}", "p:1:1: policies: is missing"),
        ("policies: {}", "p:1:1: policies:"),
        ("policies: [x]", "p:1:12: policies[0]:"),
        ("policys: []", "p:1:1: policys: unknown field; did you mean policies?"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_file_line_column_and_field(text: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        PolicySet.parse(text, "p")
    assert any(line.startswith(told) for line in str(caught.value).splitlines()), str(caught.value)


def test_the_field_that_was_meant_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown field; did you mean allowedCommands\?"):
        PolicySet.parse(GOOD.replace("allowedCommands", "allowedComands"), "p")
    with pytest.raises(ConfigurationError, match=r"unknown field; known are .*deniedCommands"):
        PolicySet.parse(GOOD + "    zzz: 1\n", "p")


def test_every_mistake_is_told_at_once() -> None:
    text = GOOD.replace("name: web", "name: we.b").replace("maxTimeout: 5m", "maxTimeout: soon")
    with pytest.raises(ConfigurationError) as caught:
        PolicySet.parse(text, "p")
    assert len(str(caught.value).splitlines()) == 2


def test_a_name_used_twice_is_told_where() -> None:
    twice = GOOD + '  - {name: web, subjects: ["**"], agents: ["**"]}\n'
    with pytest.raises(ConfigurationError, match=r"^p:10:6: .*'web' is used twice"):
        PolicySet.parse(twice, "p")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("policies: [", "p:1:12"),
        ("policies:\n  - name: web\n   agents: x\n", "p:3:"),
        ("policies: []\npolicies: []\n", "p:2:1"),
        ("a: b: c", "p:1:5"),
        ("\tpolicies: []", "p:1:1"),
        ("policies: *nowhere", "p:1:11"),
        ("policies: []\n\x00", "p"),
        ("policies: 'x", "p:1:"),
    ],
)
def test_what_is_no_yaml_is_told_with_line_and_column(text: str, where: str) -> None:
    with pytest.raises(ConfigurationError, match="not YAML") as caught:
        PolicySet.parse(text, "p")
    assert str(caught.value).startswith(where)


def test_yaml_makes_no_objects() -> None:
    with pytest.raises(ConfigurationError):
        PolicySet.parse("policies: !!python/object/apply:os.system ['false']", "p")


@given(st.text(max_size=60) | st.text("policies:-[]{}\n\"' *&!#", max_size=40))
def test_any_text_is_a_file_or_a_configuration_error(text: str) -> None:
    try:
        chosen = PolicySet.parse(text, "p")
    except ConfigurationError:
        return
    assert chosen.policies == ()


def test_a_missing_unreadable_or_huge_file_is_told_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read the policy file .*none\.yaml"):
        PolicySet.load(tmp_path / "none.yaml")
    binary, huge = tmp_path / "binary.yaml", tmp_path / "huge.yaml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match=r"cannot read the policy file .*binary\.yaml"):
        PolicySet.load(binary)
    with huge.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ConfigurationError, match=r"huge\.yaml: larger than"):
        PolicySet.load(huge)


def test_every_pattern_that_cannot_be_understood_is_named() -> None:
    text = GOOD.replace("/user/*", "/user/[").replace("{status,restart}", "{status").replace("user/alice", "user/{")
    with pytest.raises(ConfigurationError) as caught:
        PolicySet.parse(text, "p")
    assert [line.split(": ")[:2] for line in str(caught.value).splitlines()] == [
        ["p:4:16", "policies[0].subjects[0]"],
        ["p:7:9", "policies[0].allowedCommands[0]"],
        ["p:1:13", "operators"],
    ]


def test_a_name_is_used_once_in_all_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yml"):
        (tmp_path / name).write_text(GOOD)
    (tmp_path / "c.test.yaml").write_text("not read")
    with pytest.raises(ConfigurationError, match=r"b\.yml:3:5: name: 'web' is used twice, first at .*a\.yaml:3:5"):
        PolicySet.load(tmp_path)
