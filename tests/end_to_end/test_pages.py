"""The commands of all pages: each runs here, on a running system, or in a test that is named here."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from reader import AGENTS, SLOTS, Reader, permit
from support import Cli, make_cli, prepare

from documents import WRAPPERS, Block, blocks, command_lines, command_path, redirections, simple_commands
from tachikoma.dev.identities import own_user
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.identity.spiffe import user_id

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
#: Commands that another test runs, by what a line begins with; `README.md: ` before it means only that page.
ELSEWHERE = {
    r"README.md: tachikoma (exec|run) ": "tests/end_to_end/test_readme.py",
    r"make demo": ".ci/run",
    r"make dev": ".ci/run",
    r"python3 -m venv": ".ci/run",
    r"(/opt/tachikoma/bin/)?pip install (--upgrade )?'tachikoma-exec\[": ".ci/run",
    r"tachikoma dev ": "tests/end_to_end/test_dev.py",
    r"tachikoma (setup|worker install|orchestrator --) ?": "tests/end_to_end/test_setup.py",
    r"tachikoma orchestrator …": "tests/integration/shared/config/test_error_reporting.py",
    r"export TACHIKOMA_SENTRY_": "tests/integration/shared/config/test_error_reporting.py",
    r"export OTEL_": "tests/end_to_end/test_traces.py",
    r"tachikoma agents (enroll|revoke) ": "tests/security/test_joining.py",
    r"tachikoma worker (join|--agent-id) |runuser ": "tests/security/test_joining.py",
    r"tachikoma (users|login) ": "tests/security/test_people.py",
    r"tachikoma redis check ": "tests/security/test_redis_command.py",
    r"tachikoma redis (backup|restore) ": "tests/end_to_end/test_backup.py",
    r"tachikoma run .*--gate ": "tests/end_to_end/test_batches.py",
    r"tachikoma batches retry 4f1c|tachikoma run --retry 4f1c": "tests/end_to_end/test_cli.py",
    r"export TACHIKOMA_RECORDINGS": "tests/end_to_end/test_recordings.py",
    r"tachikoma (recordings (ls|export)|play) ?": "tests/end_to_end/test_recordings.py",
    r"tachikoma schedule (ls|next|pause|resume|run|history)": "tests/end_to_end/test_schedules.py",
    r"tachikoma exec -it ": "tests/end_to_end/test_terminals.py",
    r"tachikoma sessions (attach|watch) ": "tests/end_to_end/test_terminals.py",
    r"tachikoma audit tail -f": "tests/end_to_end/test_cli.py",
    r"tachikoma doctor (worker|orchestrator)": "tests/end_to_end/test_health.py",
    r"tachikoma flower ": "tests/security/test_flower_user.py",
    r"apt-get install \./dist/": "tests/container/packages",
    r"systemctl (restart|enable|daemon-reload)": "tests/container/packages",
    r"docker compose ": "tests/container/images",
}
#: Programs of others that no test runs as the pages do, and why.
NOWHERE = {
    r"\. ": "a part of the shell",
    r"git |\$EDITOR ": "publishes",
    r"\.ci/run|make (test|quick|help|lock|release-check)": "a developer's; CI itself runs what they run",
    r"make wheel deb": "CI makes the wheel, and tests/container/packages runs packaging/debian/build",
    r"make bench|pip install asyncssh": "takes minutes, and reports times that no test asserts",
    r"echo \"alice:": "needs openssl",
    r"redis-cli ": "Redis's own; tests/security/test_redis_command.py lets a server load such users",
    r"cd |ln |cp -a /media|cp tachikoma-\*|systemd-sysusers |install -[dD] ": "changes the host",
}
#: Programs of others that a page calls and that run here, if the machine has them; all their files are the reader's.
HERE = {"cp", "head", "jq", "mkdir"}
#: Lines that may or must end with another code than 0, as their pages say.
EXITS = {
    r"tachikoma policy explain .* (reboot|systemctl stop nginx|-- uptime)$": {1},
    r"tachikoma audit verify --head ": {1},
    r"tachikoma doctor$": {0, 1},
}
#: Commands that ask a person at a terminal.
ASKING = {"approve", "batches approve"}


def is_about(pattern: str, block: Block, line: str) -> bool:
    """Return whether a pattern is about a line."""
    return re.match(pattern, line) is not None or re.match(pattern, f"{block.page.name}: {line}") is not None


def lines_here() -> Iterator[tuple[Block, list[str]]]:
    """Yield the blocks with the lines that run here. One that several pages have runs once."""
    seen: set[str] = set()
    for block in blocks("console"):
        lines = []
        for line in (re.sub(r"\s+# .*$", "", line) for line in command_lines(block)):
            if line not in seen and not any(is_about(pattern, block, line) for pattern in (*ELSEWHERE, *NOWHERE)):
                seen.add(line)
                lines.append(line)
        if lines:
            yield block, lines


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[Stack]:
    """A system of these tests alone: the pages drain and label agents, and use all that there are."""
    data = prepare(tmp_path_factory.mktemp("stack"))
    permit(data, str(user_id(TRUST_DOMAIN, own_user())))
    slots = {"TACHIKOMA_SLOTS": str(SLOTS)}
    with Stack(data, agents=AGENTS, redis_server=redis_server, environment=slots) as running:
        yield running


@pytest.fixture(scope="module")
def cli(stack: Stack) -> Cli:
    return make_cli(stack)


@pytest.fixture(scope="module")
def reader(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    made = Reader(stack, tmp_path_factory.mktemp("pages"))
    yield made
    made.close()


class Line:
    """A line that runs: its commands one after the other, each with the output of the one before as its input."""

    def __init__(self, text: str, cli: Cli, reader: Reader) -> None:
        self._cli, self._reader = cli, reader
        self._text = reader.with_ids(text)
        files = redirections(self._text)
        self._input = Path(files["<"]).read_bytes() if "<" in files else None
        self._target = files.get(">")
        self._codes = next((codes for pattern, codes in EXITS.items() if re.match(pattern, text)), {0})

    def run(self) -> None:
        for words in simple_commands(self._text):
            program, *rest = self._reader.localise(words)
            if program == "echo":
                self._input = " ".join(rest).encode() + b"\n"
            elif program == "xargs":
                assert rest[:2] == ["-r", "tachikoma"]
                assert self._input
                self._run_program([*rest[2:], *self._input.decode().split()])
            elif program == "tachikoma":
                self._run_program(rest)
            else:
                self._run_other(program, rest)
        if self._target is not None:
            assert self._input
            Path(self._target).write_bytes(self._input)

    def _run_program(self, words: list[str]) -> None:
        if command_path(words)[0] in ASKING:
            words = [*words, "--yes"]
        done = self._cli.run(*words, stdin=self._input)
        assert done.returncode in self._codes, f"{self._text}: {done.stdout!r} {done.stderr!r}"
        self._input = done.stdout

    def _run_other(self, program: str, words: list[str]) -> None:
        assert program in HERE, f"{self._text}: say in ELSEWHERE where this runs"
        outside = [word for word in words if word.startswith("/") and not word.startswith(str(self._reader.folder))]
        assert outside == [], f"{self._text}: the files of the reader are elsewhere"
        if shutil.which(program) is not None:
            done = subprocess.run([program, *words], input=self._input or b"", capture_output=True, check=False)
            assert done.returncode == 0, f"{self._text}: {done.stderr!r}"
            self._input = done.stdout


@pytest.mark.parametrize(
    ("block", "lines"), [pytest.param(block, lines, id=str(block)) for block, lines in lines_here()]
)
def test_the_commands_of_a_page_succeed(
    block: Block, lines: list[str], cli: Cli, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(reader.folder)
    for line in lines:
        with reader.prepared(line):
            Line(line, cli, reader).run()


# --- commands that do not run here ------------------------------------------------------------------------------------


def essence(line: str) -> Iterator[tuple[str, ...]]:
    """Yield what each command of a line is, without arguments and options."""
    for program, *words in simple_commands(WRAPPERS.sub("", line)):
        if program.removeprefix("/opt/tachikoma/bin/") == "tachikoma":
            yield tuple(command_path([word for word in words if word != "…"])[0].split())
        elif program == "make":
            yield (program, words[0])
        elif program == "export":
            yield (words[0].partition("=")[0],)
        else:
            yield (program.rpartition("/")[2],)


@cache
def vocabulary(file: Path) -> frozenset[str]:
    """Return the words that a test in Python gives to programs: those of its short strings, and of what it imports."""
    words: set[str] = set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for statement in tree.body:
        # What a module exports is nothing that it runs.
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            statement.value = ast.Tuple([])
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value.split()) <= 4:
            words.update(node.value.split())
        elif isinstance(node, ast.ImportFrom) and node.module:
            shared = (folder / f"{node.module}.py" for folder in (file.parent, ROOT / "tests"))
            words.update(*(vocabulary(found) for found in shared if found.is_file()))
    return frozenset(words)


def runs(file: Path, words: tuple[str, ...]) -> bool:
    """Return whether a test has the words of a command; those of a shell script follow each other."""
    if file.suffix == ".py":
        return vocabulary(file).issuperset(words)
    text = " ".join(re.findall(r"[\w.-]+", file.read_text(encoding="utf-8")))
    return f" {' '.join(words)} " in text


def lines_of(pattern: str) -> list[str]:
    """Return the lines of all pages that a pattern is about."""
    lines = [(block, line) for block in blocks("console") for line in command_lines(block)]
    return [line for block, line in lines if is_about(pattern, block, line)]


@pytest.mark.parametrize("pattern", ELSEWHERE)
def test_a_command_that_does_not_run_here_runs_there(pattern: str) -> None:
    commands = {words for line in lines_of(pattern) for words in essence(line)}
    assert commands, "no page has such a command"
    missing = {words for words in commands if not runs(ROOT / ELSEWHERE[pattern], words)}
    assert missing == set(), f"{ELSEWHERE[pattern]} runs no such command"


@pytest.mark.parametrize("pattern", NOWHERE)
def test_a_command_that_no_test_runs_is_of_others(pattern: str) -> None:
    lines = lines_of(pattern)
    assert lines, "no page has such a command"
    for line in lines:
        assert re.search(r"(^|[;&|(]\s*)tachikoma ", line.partition("#")[0]) is None
