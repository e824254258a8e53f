"""What the README says is true."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support import Cli

README = Path(__file__).parents[2] / "README.md"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_python_example_runs_as_it_stands(cli: Cli) -> None:
    (example,) = _blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", example], env=cli.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, *rest = [line for line in done.stdout.splitlines() if line]
    assert first.startswith("0 Linux ")
    listed = [line for line in rest if re.fullmatch(r"[A-Za-z0-9_-]{4,} [A-Z_]+", line)]
    assert len(listed) >= 2
    assert {line.split()[1] for line in listed[:2]} == {"SUCCEEDED"}
    # Each chunk begins with its number.
    assert [line.split()[-1] for line in rest if line not in listed] == ["1", "2", "3"]


def test_the_first_example_runs_on_many_machines(cli: Cli) -> None:
    command, *shown = _blocks("console")[0].splitlines()
    assert command.startswith("$ tachikoma run ")
    done = cli.run(*shlex.split(command)[2:])
    assert done.returncode == 0
    release = os.uname().release
    printed = [*done.stdout.decode().splitlines(), done.stderr.decode().splitlines()[-1]]
    expected = [re.sub(r"6\.18\.44", release, line) for line in shown]
    assert sorted(printed[:2]) == expected[:2]
    assert printed[2] == expected[2]
    assert printed[3].partition(": ")[2] == expected[3].partition(": ")[2]


def test_the_policy_example_is_a_right_policy(tmp_path: Path, cli: Cli) -> None:
    example, _ = _blocks("yaml")
    file = tmp_path / "policy.yaml"
    file.write_text(example)
    assert cli.run("policy", "check", str(file)).stdout.decode().splitlines() == [
        f"{file}: 1 policy, all right",
        "  web: /usr/bin/systemctl: runs other programs with certain arguments",
        "  web: /usr/bin/journalctl: runs other programs on a terminal",
    ]


def test_the_example_of_schedules_is_right(tmp_path: Path, cli: Cli) -> None:
    _, example = _blocks("yaml")
    file = tmp_path / "schedules.yaml"
    file.write_text(example)
    assert cli.run("schedule", "check", str(file)).stdout.decode() == f"{file}: 1 schedule, all right\n"


@pytest.mark.parametrize("line", re.findall(r"^\$ (tachikoma exec .*)$", README.read_text(encoding="utf-8"), re.M))
def test_every_exec_of_the_tour_is_accepted(line: str, cli: Cli) -> None:

    command = line.split(";")[0] if "sh -c" not in line else line.split('; echo "exit')[0]
    arguments = shlex.split(command)[1:]
    done = cli.run(*arguments)
    assert b"Usage" not in done.stderr
    assert done.returncode in (0, 3, 124, 125, 127)
