"""Programs of a host, this machine's among them: their links and their alternatives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tachikoma.cli.commands.policy import policy as command
from tachikoma.policy.hazards import installed
from tachikoma.policy.hazards.installed import installed_kind, links_of
from tachikoma.policy.hazards.programs import ProgramKind, kind_of

KINDS = {kind.value for kind in ProgramKind}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with alternatives of its own."""
    for folder in ("bin", "alternatives", "groups"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(installed, "ALTERNATIVES", (str(tmp_path / "nowhere"), str(tmp_path / "groups")))
    return tmp_path


def program(path: Path) -> str:
    path.write_text("")
    path.chmod(0o755)
    return str(path)


def alternative(host: Path, group: str, *candidates: str) -> str:
    """Install files as the alternatives of a group, the first one chosen; returns the group's link in the path."""
    (host / "alternatives" / group).symlink_to(candidates[0])
    link = host / "bin" / group
    link.symlink_to(host / "alternatives" / group)
    listed = "\n".join(f"{candidate}\n50\n" for candidate in candidates)
    (host / "groups" / group).write_text(f"auto\n{link}\n{group}.1.gz\n/usr/share/man/{group}.1.gz\n\n{listed}\n")
    return str(link)


def test_a_link_counts_by_each_name_on_its_way(host: Path) -> None:
    hidden = program(host / "bin" / "write-things")
    (host / "bin" / "nano").symlink_to("write-things")
    (host / "bin" / "notes").symlink_to(host / "bin" / "nano")
    assert list(links_of(str(host / "bin" / "notes"))) == [str(host / "bin" / n) for n in ("notes", "nano")] + [hidden]
    assert kind_of(str(host / "bin" / "notes")) is ProgramKind.UNKNOWN
    assert installed_kind(str(host / "bin" / "notes")) is ProgramKind.RUNNER
    assert installed_kind(hidden) is ProgramKind.UNKNOWN


@pytest.mark.parametrize("group", ["editor", "pager", "awk", "x-terminal-emulator", "fakeroot"])
def test_a_file_counts_by_the_group_that_it_is_an_alternative_of(host: Path, group: str) -> None:
    chosen, other = program(host / "bin" / "zile-like"), program(host / "bin" / "other-one")
    link = alternative(host, group, chosen, other)
    (host / "bin" / "mine").symlink_to("other-one")
    for path in (link, chosen, other, str(host / "bin" / "mine")):
        assert installed_kind(path) is ProgramKind.RUNNER, path
    assert installed_kind(program(host / "bin" / "apart")) is ProgramKind.UNKNOWN


def test_a_new_alternative_is_noticed(host: Path) -> None:
    path = program(host / "bin" / "zile-like")
    assert installed_kind(path) is ProgramKind.UNKNOWN
    alternative(host, "editor", path)
    os.utime(host / "groups", ns=(1, 1))
    assert installed_kind(path) is ProgramKind.RUNNER


def test_a_safe_name_of_a_program_with_many_stays_safe(host: Path) -> None:
    program(host / "bin" / "systemctl")
    for name in ("reboot", "anything"):
        (host / "bin" / name).symlink_to("systemctl")
    assert installed_kind(str(host / "bin" / "reboot")) is ProgramKind.SAFE
    assert installed_kind(str(host / "bin" / "anything")) is ProgramKind.BY_ARGUMENTS


@pytest.mark.parametrize("record", [b"\xff\xfe\n/x\n", b"", b"/" * 1_000_000, b"auto\n" * 1000])
def test_a_damaged_record_hides_nothing_else(host: Path, record: bytes) -> None:
    path = program(host / "bin" / "zile-like")
    alternative(host, "editor", path)
    (host / "groups" / "broken").write_bytes(record)
    (host / "groups" / "folder").mkdir()
    assert installed_kind(path) is ProgramKind.RUNNER


@pytest.mark.parametrize("path", ["", "relative", "/nowhere/at/all", "/proc/self/exe"])
def test_any_path_has_a_kind(path: str) -> None:
    assert installed_kind(path) in ProgramKind


def test_links_without_an_end_are_left(host: Path) -> None:
    (host / "bin" / "loop").symlink_to("loop")
    assert len(list(links_of(str(host / "bin" / "loop")))) == installed.MAX_LINKS
    assert installed_kind(str(host / "bin" / "loop")) is ProgramKind.UNKNOWN


# --- this machine -----------------------------------------------------------------------------------------------------


def executables() -> list[str]:
    found = []
    for folder in ("/usr/bin", "/usr/sbin"):
        for entry in os.scandir(folder):
            # `[` cannot be written in a pattern as it is.
            if entry.name != "[" and entry.is_file() and os.access(entry.path, os.X_OK):
                found.append(entry.path)
    return sorted(found)


@pytest.mark.slow
def test_check_shows_the_kind_of_each_executable_of_this_machine(tmp_path: Path) -> None:
    paths = executables()
    listed = ", ".join(f"'{path}'" for path in paths)
    file = tmp_path / "policy.yaml"
    file.write_text(
        f"policies: [{{name: p, subjects: ['spiffe://x/user/a'], agents: ['*'], allowedCommands: [{listed}]}}]"
    )
    done = CliRunner().invoke(command, ["check", str(file)])
    assert done.exit_code == 0, done.output
    shown = dict(
        line.removeprefix("  p: ").split(": ", 1) for line in done.output.splitlines() if line.startswith("  p: ")
    )
    assert shown.keys() == set(paths)
    assert set(shown.values()) <= KINDS
    # A program whose own name is known has a warning. One that only leads there is refused by the agent.
    for path in paths:
        assert (shown[path] == ProgramKind.RUNNER.value) == (installed_kind(path) is ProgramKind.RUNNER)
        if kind_of(path) is ProgramKind.RUNNER:
            assert f"allowedCommands '{path}' can never grant it: allowInterpreters is not set" in done.output


@pytest.mark.parametrize("group", ["editor", "pager", "awk", "vi", "view", "ex", "nawk", "open", "java", "c++", "cc"])
def test_no_alternative_of_this_machine_is_safer_than_its_group(group: str) -> None:
    link = Path("/etc/alternatives") / group
    if not link.exists():
        pytest.skip(f"this machine has no alternative for {group}")
    assert installed_kind(f"/usr/bin/{group}") is ProgramKind.RUNNER
    assert installed_kind(str(link.resolve())) is ProgramKind.RUNNER


def test_no_shell_of_this_machine_counts_as_anything_else() -> None:
    shells = [line for line in Path("/etc/shells").read_text().splitlines() if line.startswith("/")]
    assert shells
    assert {shell: installed_kind(shell) for shell in shells} == dict.fromkeys(shells, ProgramKind.RUNNER)
