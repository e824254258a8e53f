"""Denied commands: each spelling that a program may read as a denied argument is denied."""

from __future__ import annotations

import posixpath
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.policy.denials import DeniedArguments, DeniedCommand, normalized
from tachikoma.policy.effort import Effort, TooMuchWork


def denied(line: str, command: str, work_dir: str = "") -> bool:
    program, *arguments = shlex.split(command)
    return DeniedCommand(line).denies(program, DeniedArguments(arguments, (work_dir,)))


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("rm", "/bin/rm"),
        ("rm", "/usr/local/sbin/rm -rf /"),
        ("/bin/rm", "/bin/rm x"),
        ("{rm,dd}", "/bin/dd"),
        ("mkfs*", "/sbin/mkfs.ext4 x"),
        ("*", "/bin/-x"),
        ("git push", "/usr/bin/git push origin"),
        ("git push ...", "/usr/bin/git push"),
        ("git push", "/usr/bin/git -C /srv push"),
        ("git push", "/usr/bin/git --git-dir=/srv -- push"),
        ("systemctl stop *", "/usr/bin/systemctl --no-block stop"),
        ("systemctl stop nginx*", "/usr/bin/systemctl nginx.service stop"),
    ],
)
def test_a_command_is_denied_with_any_further_arguments(line: str, command: str) -> None:
    assert denied(line, command)


@pytest.mark.parametrize(
    "arguments",
    [
        "/etc/x",
        "-A /etc/x",
        "-- /etc/x",
        "//etc/x",
        "/etc/../etc/x",
        "/dev/null /etc/x",
        "/./etc//x/",
        "/etc/../srv/x",
        "/srv/../etc/x",
        "/../../etc/x",
        "../../../etc/x",
        "./etc/x",
        "etc/x",
        "/etc",
        "/etc/",
        "/etc/.",
        "/",
        ".",
        "--file=/etc/x",
        "--file /etc/x",
        "--file=//etc/./x",
        "-f/etc/x",
        "-xzf/etc/x",
        "-f=/etc/x",
        "-fetc/x",
        "@/etc/x",
        "-d@/etc/x",
        "file:///etc/x",
        "host:/etc/x",
        "/etc/x:/mnt:ro",
        "type=bind,src=/etc/x,dst=/x",
        "if=/etc/x",
        "'a b /etc/x'",
        "'/etc/a b'",
        "/etc/a=b:c",
        "'/etc/x\n'",
    ],
)
def test_a_denied_path_is_found_in_every_spelling(arguments: str) -> None:
    assert denied("cat /etc/**", f"/bin/cat {arguments}")


@pytest.mark.parametrize(
    "arguments", ["", "x", "-A x", "-- x", "./x", "../etc/x", "../etc", "sub/../x", "/srv/../etc/x", "--file=x", "-fx"]
)
def test_a_relative_path_is_denied_where_the_working_directory_leads_there(arguments: str) -> None:
    assert denied("cat /etc/**", f"/bin/cat {arguments}", "/etc")
    assert denied("cat /etc/**", f"/bin/cat {arguments}", "/etc/ssl")


@pytest.mark.parametrize(
    ("arguments", "work_dir"),
    [
        ("/srv/etc/x", ""),
        ("/etcetera/x", ""),
        ("notes.txt", ""),
        ("", ""),
        ("-A", ""),
        ("etc/x", "/srv"),
        ("x", "/srv"),
        ("../srv/x", "/srv"),
        ("", "/"),
        ("x", "/"),
    ],
)
def test_other_paths_are_not_denied(arguments: str, work_dir: str) -> None:
    assert not denied("cat /etc/**", f"/bin/cat {arguments}", work_dir)


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("rm", "/bin/rmdir"),
        ("rm", "/rm/x"),
        ("/bin/rm", "/usr/bin/rm"),
        ("git push", "/usr/bin/git pull"),
        ("git push", "/usr/bin/git add ."),
        ("git push", "/usr/bin/git log /srv"),
        ("git push --force", "/usr/bin/git push origin"),
        ("rm -rf", "/bin/rm -r x"),
        ("systemctl stop", "/usr/bin/systemctl status nonstop"),
    ],
)
def test_other_commands_are_not_denied(line: str, command: str) -> None:
    assert not denied(line, command)


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("rm -rf", "/bin/rm -r -f x"),
        ("rm -rf", "/bin/rm -fvr x"),
        ("rm -rf", "/bin/rm x -f y -r"),
        ("rm --recursive", "/bin/rm --rec x"),
        ("rm --recursive", "/bin/rm --recursive=yes x"),
        ("find -delete", "/usr/bin/find / -delete"),
        ("find -delete", "/usr/bin/find / --delete"),
        ("tar --to-command=*", "/bin/tar --to-command=id"),
        ("tar --to-command", "/bin/tar --to-com=id"),
        ("sort --output=/etc/**", "/usr/bin/sort --output /etc/x"),
        ("sort --output=/etc/**", "/usr/bin/sort --out=/srv/../etc/x"),
        ("sort -o/etc/**", "/usr/bin/sort -o /etc/x"),
        ("sort -o /etc/**", "/usr/bin/sort -ro/etc/x"),
        ("dd of=/dev/**", "/bin/dd if=x of=//dev/sda"),
        ("cat *.key", "/bin/cat ./a.key"),
        ("cat *.key", "/bin/cat /srv/a.key"),
        ("cat shadow", "/bin/cat /etc/shadow"),
        ("cat **/.ssh/**", "/bin/cat .ssh/id_rsa"),
        ("cat **/.ssh/**", "/bin/cat /home/a/.ssh/../.ssh/id_rsa"),
        ("cat /home/*/.ssh/**", "/bin/cat --x=/home/a/./.ssh/id_rsa"),
        ("cat /etc/{passwd,shadow}", "/bin/cat -- /etc//shadow"),
        ("cat /etc//shadow/", "/bin/cat /etc/shadow"),
        ("cat ''", "/bin/cat -v ''"),
        ("cat ../secret", "/bin/cat ../secret"),
    ],
)
def test_options_names_and_patterns_are_found_in_other_spellings(line: str, command: str) -> None:
    assert denied(line, command)


SEGMENT = st.text("ab.-_ ~", min_size=1, max_size=4).filter(lambda text: text not in (".", ".."))
DETOUR = st.sampled_from(["/", "//", "/./", "/x/../", "/.//./"])
NOISE = st.lists(st.sampled_from(["-A", "--", "-n5", "--verbose", "--x=1", "/dev/null", "-", "word", ""]), max_size=4)


@st.composite
def spellings(draw: st.DrawFn, target: str) -> list[str]:
    """An argv in which a path is written with detours, somewhere among other arguments."""
    path = "".join(draw(DETOUR) + part for part in target.strip("/").split("/")) + draw(
        st.sampled_from(["", "/", "/."])
    )
    path = draw(st.sampled_from(["", "--file=", "-f", "if=", "@"])) + path
    return [*draw(NOISE), path, *draw(NOISE)]


@given(st.lists(SEGMENT, min_size=1, max_size=3), st.data())
def test_a_denied_target_is_denied_in_each_allowed_argv_that_reaches_it(parts: list[str], data: st.DataObject) -> None:
    target = "/etc/" + "/".join(parts)
    arguments = data.draw(spellings(target))
    for line in ("cat /etc/**", "cat /etc/** ...", "/bin/cat /**"):
        assert DeniedCommand(line).denies("/bin/cat", DeniedArguments(arguments))
    assert DeniedCommand(f"cat {shlex.quote(target)}").denies("/bin/cat", DeniedArguments(arguments))


@given(st.lists(SEGMENT, max_size=3), st.lists(SEGMENT, min_size=1, max_size=3), NOISE)
def test_a_relative_way_to_a_denied_target_is_denied(folder: list[str], parts: list[str], noise: list[str]) -> None:
    work_dir = "/" + "/".join(folder)
    target = "/etc/" + "/".join(parts)
    relative = posixpath.relpath(target, work_dir)
    assert DeniedCommand("cat /etc/**").denies("/bin/cat", DeniedArguments([*noise, relative], (work_dir,)))


@given(st.text("/.ab", max_size=12))
def test_a_normalized_path_has_no_detour(path: str) -> None:
    found = normalized(path)
    assert found.startswith("/")
    assert not found.startswith("//")
    assert not {"", ".", ".."} & set(found.split("/")[1:]) or found == "/"


def test_a_denied_line_says_when_it_cannot_be_meant_as_written() -> None:
    assert not DeniedCommand("rm").has_arguments
    assert DeniedCommand("rm x").has_arguments
    assert DeniedCommand("cat /etc/**").undecidable == ()
    assert "the option -rf may have other names" in DeniedCommand("rm -rf").undecidable
    assert "contains a '.' or '..'" in DeniedCommand("cat ../x").undecidable[0]


@pytest.mark.parametrize("argument", ["=" * 200, "/a" * 200, "a " * 200, "-" + "a/" * 200])
def test_the_work_on_many_meanings_is_bounded(argument: str) -> None:
    with pytest.raises(TooMuchWork):
        DeniedArguments([argument], effort=Effort(100))
    arguments = DeniedArguments([argument])
    with pytest.raises(TooMuchWork):
        DeniedCommand("cat **b*c").denies("/bin/cat", arguments, Effort(20))
