"""Folders of policies, warnings, explanations, expectations, the schema."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tachikoma.cli.commands import policy as command
from tachikoma.errors import ConfigurationError
from tachikoma.policy.decide import PolicySet
from tachikoma.policy.watch import PolicyWatch

ALICE = "spiffe://example.org/user/alice"
WEB = """\
policies:
  - name: web
    subjects: ["spiffe://example.org/user/*"]
    agents: ["web-*"]
    allowedCommands: ["/usr/bin/systemctl {status,restart} nginx.service"]
    deniedCommands: ["/usr/bin/systemctl stop"]
    allowedUsers: [www-data]
"""
OPERATORS = f"operators: ['{ALICE}']\npolicies: []\n"


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(command.policy, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "web.yaml"
    path.write_text(WEB)
    return path


def test_a_mistyped_option_of_explain_is_no_agent(file: Path) -> None:
    given = ("--policy", str(file), "--as", ALICE, "--labl", "role=web", "web-1", "true")
    assert run("explain", *given) == (2, "", "tachikoma: explain has no option --labl; did you mean --label?\n")


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_all_its_policy_files(tmp_path: Path, file: Path) -> None:
    (tmp_path / "a.yml").write_text(OPERATORS)
    (tmp_path / "web.test.yaml").write_text("no policy")
    (tmp_path / "README").write_text("no policy")
    found = PolicySet.load(tmp_path)
    assert [policy.policy.name for policy in found.policies] == ["web"]
    assert found.is_operator(ALICE)


def test_mistakes_of_all_files_are_told_and_names_are_used_once(tmp_path: Path, file: Path) -> None:
    (tmp_path / "a.yaml").write_text(WEB)
    (tmp_path / "b.yaml").write_text("policies: 5")
    with pytest.raises(ConfigurationError) as caught:
        PolicySet.load(tmp_path)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{tmp_path}/b.yaml:1:1: policies:")
    assert second == f"{file}:2:5: name: 'web' is used twice, first at {tmp_path}/a.yaml:2:5"


def test_an_empty_folder_is_no_policy(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no policy file in"):
        PolicySet.load(tmp_path)


def test_a_folder_is_watched(tmp_path: Path, file: Path) -> None:
    watch = PolicyWatch(tmp_path)
    assert not watch.reload()
    (tmp_path / "a.yaml").write_text(OPERATORS)
    assert watch.reload()
    assert watch.current.is_operator(ALICE)
    (tmp_path / "a.yaml").unlink()
    assert watch.reload()
    assert not watch.current.is_operator(ALICE)
    os.truncate(file, 20)
    assert watch.reload()
    assert watch.error
    assert watch.current.policies


# --- check ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "warning"),
    [
        ("{}", "grants and denies nothing"),
        ("{allowedCommands: ['/** ...']}", "grants every program"),
        ("{allowedCommands: ['/bin/sh -c x']}", "can never grant it: allowInterpreters is not set"),
        (
            "{allowedCommands: ['/bin/sh ...'], allowInterpreters: true}",
            "/bin/sh can run any other program",
        ),
        ("{allowedCommands: ['/bin/x stop a'], deniedCommands: [x stop]}", "can never grant it: deniedCommands covers"),
        ("{allowedCommands: [/bin/x], executableSha256: {/bin/y: []}}", "pins /bin/y, which no entry"),
        ("{allowedCommands: [/bin/x], allowedNetworks: [10.0.0.0/8, '::/0']}", "contains every address"),
        ("{allowedCommands: [/bin/x], capabilities: [CAP_CHOWN]}", "only root keeps them"),
    ],
)
def test_what_is_hardly_meant_is_a_warning(tmp_path: Path, rules: str, warning: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(f"policies:\n  - {{name: p, subjects: ['{ALICE}'], agents: ['*'], {rules[1:-1]}}}\n")
    code, out, err = run("check", str(path))
    assert (code, out.splitlines()[0]) == (0, f"{path}: 1 policy, valid")
    assert f"warning: {path}:2:6: p: " in err
    assert warning in err
    assert run("check", "--strict", str(path))[0] == 1


def test_a_careful_policy_has_no_warning(file: Path) -> None:
    known = "  web: /usr/bin/systemctl: runs other programs with certain arguments\n"
    assert run("check", "--strict", str(file)) == (0, f"{file}: 1 policy, all right\n{known}", "")


def test_the_kind_of_each_granted_program_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    commands = "['/bin/{sh,true} x', /opt/app, '/opt/*/x', /usr/bin/journalctl ...]"
    path.write_text(f"policies: [{{name: p, subjects: ['{ALICE}'], agents: ['*'], allowedCommands: {commands}}}]")
    lines = run("check", str(path))[1].splitlines()
    assert lines[1:] == [
        "  p: /bin/sh: runs other programs",
        "  p: /bin/true: known to run no other program",
        "  p: /opt/app: unknown: it may run other programs",
        "  p: /opt/*/x: unknown: it may run other programs",
        "  p: /usr/bin/journalctl: runs other programs on a terminal",
    ]


# --- explain ----------------------------------------------------------------------------------------------------------


def test_an_explanation_names_what_each_policy_says(tmp_path: Path, file: Path) -> None:
    (tmp_path / "more.yaml").write_text(WEB.replace("name: web", "name: more").replace("restart", "start"))
    base = ["explain", "--policy", str(tmp_path), "--as", ALICE, "web-1", "--"]
    code, out, _ = run(*base, "systemctl", "restart", "nginx.service")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("more@")
    assert "does not grant it: allowedCommands" in lines[0]
    assert lines[1].startswith("web@")
    assert lines[1].endswith("grants it")
    assert lines[2].startswith("allowed: web@")
    assert lines[3] == "  may execute  /usr/bin/systemctl  (runs other programs with certain arguments)"

    assert lines[4] == "  by default   memory 80%, pids 4096, cpuWeight 100, openFiles 65536"
    assert lines[5] == "  isolation    that of the agent"

    code, out, _ = run(*base, "systemctl", "stop", "nginx.service")
    assert code == 1
    assert "denies it, whichever policy grants it: deniedCommands: /usr/bin/systemctl stop" in out
    code, out, _ = run(*base[:-2], "-u", "root", "web-1", "--", "systemctl", "status", "nginx.service")
    assert code == 1
    assert "does not allow the user 'root'" in out
    code, out, _ = run("explain", "--policy", str(tmp_path), "--as", ALICE, "db-1", "--", "true")
    assert (code, out) == (1, f"denied: default\n  no policy applies to {ALICE} on agent db-1\n")


def test_an_explanation_shows_limits_defaults_and_isolation(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        WEB + "    isolation: private\n    limits: {memory: 1GiB, pids: 9, cpuWeight: 50, openFiles: 64}\n"
    )
    given = ("explain", "--policy", str(tmp_path), "--as", ALICE, "web-1", "--", "systemctl", "status", "nginx.service")
    lines = run(*given)[1].splitlines()
    assert lines[-2:] == [
        "  limits       memory 1073741824, cpuWeight 50, pids 9, openFiles 64", "  isolation    private"
    ]  # fmt: skip


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "labels", "meant"),
    [
        ("role=web", {"role": "web"}, True),
        ("role=web", {"role": "web", "site": "a"}, True),
        ("role=web", {"role": "webs"}, False),
        ("role=web", {}, False),
        ("role=*", {}, False),
        ("role=*,site={a,b}", {"role": "x", "site": "b"}, True),
        ("role=*,site=a", {"role": "x", "site": "b"}, False),
        ("web-*", {"role": "web-1"}, False),
    ],
)
def test_agents_are_selected_by_their_labels(
    tmp_path: Path, selector: str, labels: dict[str, str], meant: bool
) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(WEB.replace('"web-*"', f'"{selector}"'))
    options = [f"--label={name}={value}" for name, value in labels.items()]
    code, _, _ = run(
        "explain", "--policy", str(path), "--as", ALICE, *options, "db-1", "--", "systemctl", "status", "nginx.service"
    )
    assert (code == 0) == meant


@pytest.mark.parametrize("selector", ["=web", "ro*=web", "role=web,", "role=[a"])
def test_wrong_selectors_are_told(tmp_path: Path, selector: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(WEB.replace('"web-*"', f'"{selector}"'))
    with pytest.raises(ConfigurationError, match=r"p\.yaml:4:14: policies\[0\]\.agents\[0\]: "):
        PolicySet.load(path)


# --- networks ---------------------------------------------------------------------------------------------------------


def test_explanations_and_expectations_know_from_where(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    rules = "allowedCommands: [/bin/x], allowedNetworks: [10.0.0.0/8]"
    path.write_text(f"policies:\n  - {{name: p, subjects: ['{ALICE}'], agents: ['*'], {rules}}}\n")
    for given, code in ((("--from", "10.1.2.3"), 0), (("--from", "11.1.2.3"), 1), ((), 1)):
        explained = run("explain", "--policy", str(path), "--as", ALICE, *given, "web-1", "/bin/x")
        assert explained[0] == code
        assert code == 0 or "allowedNetworks (policy p does not allow requests from " in explained[1]
    wanted = f"{{as: '{ALICE}', agent: web-1, command: /bin/x"
    path.with_suffix(".test.yaml").write_text(
        f"tests:\n  - {wanted}, from: 10.1.2.3, expect: allow}}\n  - {wanted}, expect: deny, rule: allowedNetworks}}\n"
    )
    assert run("test", str(path)) == (0, "2 of 2 as expected\n", "")


# --- terminals --------------------------------------------------------------------------------------------------------


def test_a_terminal_is_interactive(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    rules = "allowedCommands: [/bin/x], allowTty: true"
    path.write_text(f"policies:\n  - {{name: p, subjects: ['{ALICE}'], agents: ['*'], {rules}}}\n")
    given = ("explain", "--policy", str(path), "--as", ALICE, "--tty", "web-1", "/bin/x")
    code, out, _ = run(*given)
    assert code == 1
    assert "does not allow interactive executions" in out
    path.write_text(path.read_text().replace("allowTty", "allowInteractive: true, allowTty"))
    assert run(*given)[0] == 0


# --- expectations -----------------------------------------------------------------------------------------------------


def test_expectations_that_are_met_and_that_are_not(tmp_path: Path, file: Path) -> None:
    beside = tmp_path / "web.test.yaml"
    good = (
        f"  - {{as: '{ALICE}', agent: web-1, command: systemctl restart nginx.service, expect: allow, policy: web}}\n"
    )
    denied = f"  - {{as: '{ALICE}', agent: web-1, command: [systemctl, stop, x], expect: deny, rule: deniedCommands}}\n"
    beside.write_text("tests:\n" + good + denied)
    assert run("test", str(file)) == (0, "2 of 2 as expected\n", "")
    beside.write_text(
        "tests:\n" + good.replace("allow,", "deny,") + denied.replace("deniedCommands", "allowedUsers")
        + good.replace("policy: web", "policy: db")
    )  # fmt: skip
    code, out, _ = run("test", str(file))
    assert code == 1
    first, second, third, last = out.splitlines()
    assert first.startswith(f"FAILED {ALICE} on web-1: systemctl restart nginx.service is allowed by web@")
    assert second.endswith("is decided by the field deniedCommands: /usr/bin/systemctl stop, not by allowedUsers")
    assert third.endswith(", not by db")
    assert last == "0 of 3 as expected"


@pytest.mark.parametrize(
    "content", ["", "tests: []", "tests: [{as: x}]", "[", "tests: [{as: x, agent: '!', command: x, expect: allow}]"]
)
def test_wrong_expectations_are_told(tmp_path: Path, file: Path, content: str) -> None:
    (tmp_path / "web.test.yaml").write_text(content)
    with pytest.raises(ConfigurationError, match=r"web\.test\.yaml"):
        run("test", str(file))


def test_missing_expectations_are_told(file: Path) -> None:
    with pytest.raises(ConfigurationError, match="there are no expectations at"):
        run("test", str(file))


# --- schema -----------------------------------------------------------------------------------------------------------


def test_the_shipped_schema_knows_what_policies_know() -> None:
    """Not word for word: how pydantic writes a schema is its own affair."""
    shipped = json.loads((Path(command.__file__).parents[2] / "policy.schema.json").read_text())
    code, out, _ = run("schema")
    current = json.loads(out)
    assert (code, current["title"]) == (0, "Tachikoma policy")
    again = "run: tachikoma policy schema > shared/tachikoma/policy.schema.json"
    assert set(shipped["$defs"]) == set(current["$defs"]), again
    for name, definition in current["$defs"].items():
        assert set(shipped["$defs"][name].get("properties", ())) == set(definition.get("properties", ())), again
        assert shipped["$defs"][name].get("required") == definition.get("required"), again
        assert shipped["$defs"][name].get("description") == definition.get("description"), again
