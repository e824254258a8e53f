"""The program of a command: found, checked and opened. With a spawner it is tested in tests/confinement."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tachikoma.vocabulary.grants import Grant, GrantedExecutable
from tachikoma_worker.confinement.account import Account
from tachikoma_worker.confinement.executable import (
    FIRST_LINE_BYTES,
    MAX_LINKS,
    Executable,
    check_real_path,
    open_executable,
)
from tachikoma_worker.confinement.refusals import CannotExecute, Refused

ME = Account("me", os.getuid(), os.getgid(), "/", ())
TRUSTED = frozenset({0, os.getuid()})


def program(path: Path, content: bytes = b"\x7fELF", mode: int = 0o755) -> str:
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


def opened(*command: str, granted: list[GrantedExecutable] | None = None, user: Account = ME) -> Executable:
    found = open_executable(command, granted or [GrantedExecutable(path=command[0])], user, TRUSTED)
    os.close(found.fd)
    return found


def test_a_program_is_opened_under_its_real_path(tmp_path: Path) -> None:
    path = program(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    found = opened(str(tmp_path / "link"), "x")
    assert (found.path, found.real_path, found.argv) == (str(tmp_path / "link"), path, (str(tmp_path / "link"), "x"))


def test_a_script_gets_its_interpreter_and_its_own_path(tmp_path: Path) -> None:
    path = program(tmp_path / "script", b"#! /bin/sh -e \necho\n")
    found = opened(path, "a", "b")
    assert found.path == "/bin/sh"
    assert found.argv == ("/bin/sh", "-e", path, "a", "b")
    assert found.real_path == path


@pytest.mark.parametrize(
    ("first", "code", "message"),
    [
        (b"#!\n", 126, "names no interpreter"),
        (b"#!sh\n", 126, "not an absolute path: 'sh'"),
        (b"#!/nowhere/sh\n", 127, "interpreter it names was not found: /nowhere/sh"),
        (b"#!/" + b"x" * FIRST_LINE_BYTES + b"\n", 126, "longer than 256 bytes"),
    ],
)
def test_a_script_whose_first_line_leads_nowhere_says_so(tmp_path: Path, first: bytes, code: int, message: str) -> None:
    with pytest.raises(CannotExecute, match=message) as caught:
        opened(program(tmp_path / "script", first))
    assert caught.value.exit_code == code


@pytest.mark.parametrize(
    ("make", "code", "message"),
    [
        (lambda path: None, 127, "command not found"),
        (lambda path: path.mkdir(), 126, "is a directory"),
        (lambda path: program(path, mode=0o644), 126, "permission denied"),
        (lambda path: os.mkfifo(path, 0o755), 126, "permission denied"),
    ],
    ids=["nothing", "a folder", "a plain file", "a pipe"],
)
def test_what_is_no_program_says_why(tmp_path: Path, make: object, code: int, message: str) -> None:
    make(tmp_path / "x")  # type: ignore[operator]
    with pytest.raises(CannotExecute, match=message) as caught:
        opened(str(tmp_path / "x"))
    assert caught.value.exit_code == code


def test_a_path_of_too_many_links_is_refused(tmp_path: Path) -> None:
    # More than the kernel follows, in parts that it follows each by itself.
    path = tmp_path / "0"
    path.mkdir()
    program(path / "x")
    for number in range(1, MAX_LINKS + 2):
        (tmp_path / str(number)).symlink_to(str(number - 1))
    with pytest.raises(CannotExecute):
        opened(str(tmp_path / str(MAX_LINKS + 1) / "x"))


def test_a_file_that_untrusted_users_can_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="can be written by group or others"):
        opened(program(tmp_path / "x", mode=0o775))


def test_a_file_that_the_user_may_not_execute_is_126(tmp_path: Path) -> None:
    other = Account("other", 54321, 54321, "/", ())
    with pytest.raises(CannotExecute, match="permission denied for other"):
        opened(program(tmp_path / "x", mode=0o700), user=other)


def test_content_that_policy_pins_must_match(tmp_path: Path) -> None:
    path = program(tmp_path / "x", b"\x7fELF one")
    pin = hashlib.sha256(b"\x7fELF one").hexdigest()
    assert opened(path, granted=[GrantedExecutable(path=path, sha256=("0" * 64, pin))]).path == path
    with pytest.raises(Refused, match="policy pins other content"):
        opened(path, granted=[GrantedExecutable(path=path, sha256=("0" * 64,))])


def test_a_refused_file_leaves_no_descriptor_open(tmp_path: Path) -> None:
    path = program(tmp_path / "x", b"#!\n")
    before = os.listdir("/proc/self/fd")
    for _ in range(5):
        with pytest.raises(CannotExecute):
            opened(path)
    assert os.listdir("/proc/self/fd") == before


def test_a_real_path_that_policy_denies_is_refused() -> None:
    granted = (GrantedExecutable(path="/x"),)
    check_real_path("/bin/cat", ["/x", "a"], Grant(executables=granted, denied=("rm",)), "/")
    with pytest.raises(Refused, match="/x leads to /bin/rm, and policy denies 'rm'"):
        check_real_path("/bin/rm", ["/x", "a"], Grant(executables=granted, denied=("rm",)), "/")
    with pytest.raises(Refused, match="runs any code that it is given"):
        check_real_path("/bin/sh", ["/x"], Grant(executables=granted), "/")
    check_real_path("/bin/sh", ["/x"], Grant(executables=granted, interpreters=True), "/")


@pytest.mark.parametrize(
    ("arguments", "work_dir"),
    [(["x"], "/etc"), (["../etc/x"], "/srv"), (["-n", "../../x"], "/etc/a/b"), ([], "/etc/ssl")],
)
def test_a_relative_argument_is_denied_where_the_command_starts(arguments: list[str], work_dir: str) -> None:
    grant = Grant(executables=(GrantedExecutable(path="/bin/cat"),), denied=("cat /etc/**",))
    check_real_path("/usr/bin/cat", ["cat", *arguments], grant, "/srv/a/b")
    with pytest.raises(Refused, match=r"policy denies 'cat /etc/\*\*'"):
        check_real_path("/usr/bin/cat", ["cat", *arguments], grant, work_dir)


def test_arguments_that_are_too_long_to_compare_are_refused() -> None:
    grant = Grant(executables=(GrantedExecutable(path="/bin/x"),), denied=("x *a*b*c*",))
    with pytest.raises(Refused, match="too long to compare"):
        check_real_path("/bin/x", ["x", *("a" * 60_000, "ab" * 30_000)], grant, "/")
