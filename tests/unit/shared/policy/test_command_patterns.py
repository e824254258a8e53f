"""The command patterns of policy files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.policy.command_patterns import CommandPattern, CommandPatterns
from tachikoma.policy.effort import Effort, TooMuchWork
from tachikoma.policy.patterns import PatternError


def command(line: str, *argv: str, deny: bool = False) -> bool:
    return CommandPattern(line, deny=deny).matches(argv[0], argv[1:])


@pytest.mark.parametrize(
    ("line", "argv"),
    [
        ("/bin/ls", ["/bin/ls"]),
        ("/bin/ls -l", ["/bin/ls", "-l"]),
        ("/bin/ls *", ["/bin/ls", "x"]),
        ("/bin/ls ...", ["/bin/ls"]),
        ("/bin/ls ...", ["/bin/ls", "-l", "/", "x y"]),
        ("/bin/ls -l ...", ["/bin/ls", "-l", "x"]),
        ("/usr/bin/systemctl {status,restart} nginx.service", ["/usr/bin/systemctl", "restart", "nginx.service"]),
        ("/bin/echo 'a b'", ["/bin/echo", "a b"]),
        ("/bin/echo ''", ["/bin/echo", ""]),
        ("/bin/rm -- *", ["/bin/rm", "--", "x"]),
        ("/opt/*/run", ["/opt/app/run"]),
        ("/** ...", ["/any/where/x", "y"]),
    ],
)
def test_a_command_is_allowed(line: str, argv: list[str]) -> None:
    assert command(line, *argv)


@pytest.mark.parametrize(
    ("line", "argv"),
    [
        ("/bin/ls", ["/bin/ls", "-l"]),
        ("/bin/ls", ["/bin/ls", ""]),
        ("/bin/ls -l", ["/bin/ls"]),
        ("/bin/ls *", ["/bin/ls", "x", "y"]),
        # the space in an element is not the space between two
        ("/bin/ls -l", ["/bin/ls -l"]),
        ("/bin/ls *", ["/bin/ls", "x y/z"]),
        ("/usr/bin/uptime -p", ["/usr/bin/uptime -p"]),
        ("/bin/echo 'a b'", ["/bin/echo", "a", "b"]),
        # an option in the place of a path
        ("/bin/cat *", ["/bin/cat", "--help"]),
        ("/bin/cat **", ["/bin/cat", "-"]),
        # a missing --
        ("/bin/rm -- *", ["/bin/rm", "x"]),
        ("/bin/rm -- *", ["/bin/rm", "x", "x"]),
        ("/bin/ls", ["/usr/bin/ls"]),
        ("/opt/*/run", ["/opt/a/b/run"]),
        ("/opt/*/run", ["/opt/../run"]),
        ("/bin/ls ...", ["/bin/lsx"]),
    ],
)
def test_a_command_is_not_allowed(line: str, argv: list[str]) -> None:
    assert not command(line, *argv)


@pytest.mark.parametrize(
    "line", ["ls", "ls -l", "./ls", "../ls", "bin/ls", "*", "**", "{/bin/ls,/bin/cat}", "~/x", "''"]
)
def test_an_allowed_program_is_named_by_its_absolute_path(line: str) -> None:
    with pytest.raises(PatternError, match="absolute path"):
        CommandPattern(line)


@pytest.mark.parametrize("line", ["./rm", "bin/rm", "../rm"])
def test_a_denied_program_is_a_name_or_an_absolute_path(line: str) -> None:
    with pytest.raises(PatternError, match="absolute path"):
        CommandPattern(line, deny=True)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", "names no program"),
        ("   ", "names no program"),
        ("...", "names no program"),
        ("/bin/ls ... x", "only at the end"),
        ("/bin/ls ... ...", "only at the end"),
        ("/bin/ls 'x", "quotation"),
        ("/bin/ls x\\", "escaped"),
        ("/bin/ls [", "not closed"),
        ("/bin/{ls", "closed"),
    ],
)
def test_a_wrong_command_line_is_told(line: str, told: str) -> None:
    with pytest.raises(PatternError, match=told):
        CommandPattern(line)


ARGUMENTS = st.lists(st.sampled_from(["", "a", "b", "-a", "..", "a/b", "a b"]), max_size=3)


@given(ARGUMENTS, ARGUMENTS)
def test_a_line_without_wildcards_allows_exactly_what_is_written(written: list[str], arguments: list[str]) -> None:
    line = " ".join(["/bin/x", *(f"'{item}'" for item in written)])
    assert CommandPattern(line).matches("/bin/x", arguments) == (written == arguments)


def test_matching_stops_when_no_steps_are_left() -> None:
    with pytest.raises(TooMuchWork):
        CommandPattern("/bin/x *a*").matches("/bin/x", ["x" * 100], Effort(50))


def test_the_index_finds_patterns_by_path_by_name_and_by_wildcard() -> None:
    lines = ["/bin/rm x", "rm", "mk*", "/bin/cat"]
    index = CommandPatterns([CommandPattern(line, deny=True) for line in lines])
    assert [pattern.text for pattern in index.of("/bin/rm")] == ["/bin/rm x", "rm", "mk*"]
    assert [pattern.text for pattern in index.of("/usr/bin/cat")] == ["mk*"]
