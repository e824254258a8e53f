"""The commands of the pages for users, on a running system."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import Cli, make_cli, prepare

from documents import Block, blocks, command_lines, simple_commands
from tachikoma.dev.stack import Stack
from tachikoma.identity.files import BUNDLE_FILE

#: Pages whose commands run here.
PAGES = ("start.md", "tasks.md")
#: Commands that do not run here, and where they do.
ELSEWHERE = {
    r"make demo|tachikoma dev|\. ": "end_to_end/test_dev.py",
    r"/opt/tachikoma|systemctl": "end_to_end/test_setup.py",
    r"tachikoma worker install": "end_to_end/test_setup.py",
    r"tachikoma agents (enroll|revoke)": "security/test_joining.py",
    r"tachikoma (users|login)": "security/test_people.py",
    r"tachikoma redis acl|cp |redis-cli": "security/test_redis_command.py",
    r"tachikoma redis (backup|restore)": "end_to_end/test_backup.py",
    r"tachikoma (recordings|play)": "end_to_end/test_recordings.py",
    r"tachikoma schedule (ls|next|pause|history)": "end_to_end/test_schedules.py",
}
#: Commands that may end with another code than 0, as their pages say.
EXITS = {"policy explain": {0, 1}, "doctor": {0, 1}}
SCHEDULES = next(block.text for block in blocks("yaml") if block.page.name == "tasks.md" and "schedules:" in block.text)


def here() -> list[Block]:
    return [block for block in blocks("console") if block.page.name in PAGES]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[Stack]:
    """A system of these tests alone: the pages drain and label agents, and use all that there are."""
    with Stack(prepare(tmp_path_factory.mktemp("stack")), agents=3, redis_server=redis_server) as running:
        yield running


@pytest.fixture(scope="module")
def cli(stack: Stack) -> Cli:
    return make_cli(stack)


@pytest.fixture(scope="module")
def local(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Names of the pages as this system has them."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "schedules.yaml").write_text(SCHEDULES)
    bundle = str(stack.identity("user") / BUNDLE_FILE)
    names = {
        "~/.local/share/tachikoma": str(stack.data), "web-": "agent-", "both.pem": bundle, "new.pem": bundle,
        "schedules.yaml": str(folder / "schedules.yaml"), "policy.yaml": str(stack.data / "policy.yaml"),
    }  # fmt: skip

    # Once, and not within a path.
    known = re.compile(rf"(?<![/\w])(?:{'|'.join(map(re.escape, names))})")
    return lambda word: known.sub(lambda found: names[found[0]], word)


@pytest.mark.parametrize("block", here(), ids=str)
def test_the_commands_of_a_page_succeed(block: Block, cli: Cli, local: Callable[[str], str]) -> None:
    for line in command_lines(block):
        if any(re.match(pattern, line) for pattern in ELSEWHERE):
            continue
        stdin = None
        for words in simple_commands(line):
            if words[0] == "echo":
                stdin = " ".join(words[1:]).encode() + b"\n"
                continue
            assert words[0] == "tachikoma", f"{block}: {line}: say in ELSEWHERE where this runs"
            done = cli.run(*map(local, words[1:]), stdin=stdin)
            allowed = next((codes for command, codes in EXITS.items() if f"tachikoma {command}" in line), {0})
            assert done.returncode in allowed, f"{block}: {line}: {done.stdout!r} {done.stderr!r}"


@pytest.mark.parametrize("file", sorted(set(ELSEWHERE.values())))
def test_a_command_that_does_not_run_here_runs_there(file: str) -> None:
    assert (Path(__file__).parents[1] / file).is_file()
