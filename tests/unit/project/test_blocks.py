"""The blocks of code in the documents: each is accepted by the program that reads it."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from textwrap import indent

import pytest
from ruamel.yaml import YAML

from documents import WRAPPERS, Block, accept, blocks, command_lines, simple_commands
from tachikoma.config.settings import variable
from tachikoma.policy.decide import PolicySet
from tachikoma.policy.tools.expectations import check, load_expectations
from tachikoma.schedules.file import ScheduleSet
from tachikoma_worker.settings import WorkerSettings

ROOT = Path(__file__).parents[3]
#: Languages that a block may have. `text` is the output or input of a program and has no command.
LANGUAGES = {"console", "python", "yaml", "toml", "text", ""}
#: Blocks without a language that are more than output: configurations of Redis, and pictures.
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
#: Programs of others that a reader calls, and why this test does not run them; `test_pages.py` runs some.
OTHERS = {
    "$EDITOR": "it waits for a person",
    ".": "a part of the shell; `make demo` makes the file",
    ".ci/run": "CI itself",
    "/opt/tachikoma/bin/pip": "it installs from an index; .ci/run installs the wheel with pip",
    "apt-get": "it changes the host; tests/container/packages installs the packages",
    "asciinema": "a player of others",
    "cd": "a part of the shell",
    "chmod": "a file of the reader",
    "cp": "files of the reader",
    "docker": "tests/container/images runs it in CI",
    "echo": "a part of the shell",
    "export": "a part of the shell",
    "git": "it publishes",
    "head": "it shortens output",
    "install": "it changes the host",
    "ln": "it changes the host",
    "jq": "not on every machine",
    "mkdir": "a folder of the reader",
    "pip": "it installs from an index",
    "python3": "it makes an environment",
    "redis-cli": "it needs the Redis of the reader; tests/security loads users",
    "systemctl": "it needs systemd",
    "systemd-sysusers": "it needs systemd",
    "xargs": "it calls a command that is checked in its own line",
}
#: Line of a policy file before fields that a page shows alone.
POLICY_HEAD = "policies:\n  - name: example\n    subjects: [a]\n    agents: [b]\n"


def fields_of_a_policy(text: str) -> str:
    """Return a policy file with the fields, or with the entry of a list, that a page shows alone."""
    if text.lstrip().startswith("- name:"):
        return "policies:\n" + text
    commands = "" if "allowedCommands" in text else "    allowedCommands: [/usr/bin/true]\n"
    return POLICY_HEAD + commands + indent(text, "    ")


@pytest.mark.parametrize("block", blocks(), ids=str)
def test_a_block_has_a_language_that_is_checked(block: Block) -> None:
    assert block.language in LANGUAGES
    if block.language in ("text", ""):
        assert not re.search(r"^\$ ", block.text, re.MULTILINE), "commands are in blocks of `console`"


def test_every_page_with_commands_is_read() -> None:
    with_commands = {
        page
        for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
        if re.search(r"^ *```console$", page.read_text(encoding="utf-8"), re.MULTILINE)
    }
    # The examples of the help have a test of their own.
    assert with_commands - {ROOT / "docs/cli.md"} == {block.page for block in blocks("console")}


@pytest.mark.parametrize("block", blocks("console"), ids=str)
def test_every_command_is_accepted_by_its_program(block: Block) -> None:
    lines = command_lines(block)
    assert lines
    for line in lines:
        for words in simple_commands(WRAPPERS.sub("", line)):
            program, *rest = words
            if program.removeprefix("/opt/tachikoma/bin/") == "tachikoma":
                accept([word for word in rest if word not in ("…", "...")])
            elif program == "make":
                assert {word for word in rest if "=" not in word} <= TARGETS
            else:
                assert program in OTHERS, f"{block}: {program}: say in OTHERS why no test runs it"


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_every_python_block_is_python(block: Block) -> None:
    """`tools/check_snippets.py` checks their types."""
    assert ast.parse(block.text).body


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_every_yaml_block_is_loaded_by_its_reader(
    block: Block, tmp_path: Path, need: Callable[[bool, str], None]
) -> None:
    names = YAML(typ="safe").load(block.text)
    if isinstance(names, dict) and "policies" in names:
        assert PolicySet.parse(block.text, str(block)).policies
    elif isinstance(names, dict) and "schedules" in names:
        assert ScheduleSet.parse(block.text, str(block)).schedules
    elif isinstance(names, dict) and "tests" in names:
        file = tmp_path / "policy.test.yaml"
        file.write_text(block.text)
        assert load_expectations(file)
    elif isinstance(names, dict) and "scrape_configs" in names:
        need(shutil.which("promtool") is not None, "promtool")
        installed, file = "/etc/prometheus/tachikoma/alerts.yaml", tmp_path / "prometheus.yml"
        assert installed in block.text
        file.write_text(block.text.replace(installed, str(ROOT / "packaging/monitoring/alerts.yaml")))
        subprocess.run(["promtool", "check", "config", str(file)], check=True, capture_output=True)
    else:
        assert PolicySet.parse(fields_of_a_policy(block.text), str(block)).policies


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_every_toml_block_is_a_file_of_settings(block: Block) -> None:
    known = {variable(WorkerSettings, name).removeprefix("TACHIKOMA_").lower() for name in WorkerSettings.model_fields}
    assert set(tomllib.loads(block.text)) <= known


RECIPES = [block for block in blocks("yaml") if block.page.name == "recipes.md"]


@pytest.mark.parametrize(("policy", "tests"), [*zip(RECIPES[::2], RECIPES[1::2], strict=True)], ids=str)
def test_a_recipe_decides_as_its_page_says(policy: Block, tests: Block, tmp_path: Path) -> None:
    file = tmp_path / "recipe.test.yaml"
    file.write_text(tests.text)
    outcomes = check(PolicySet.parse(policy.text, str(policy)), load_expectations(file))
    assert [outcome.mistake for outcome in outcomes] == [""] * len(outcomes)
    # A policy that allows all or nothing would be no recipe.
    assert len({outcome.expectation.expect for outcome in outcomes}) > 1
