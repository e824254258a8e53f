"""Programs that can run any other program."""

from __future__ import annotations

import pytest

from tachikoma.policy.hazards.interpreters import is_interpreter


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/bin/sh",
            "bash",
            "/usr/bin/env",
            "busybox",
            "find",
            "xargs",
            "/usr/bin/python3.11",
            "python3.13t",
            "perl5.36.0",
        ),
        *("sudo", "/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1", "ld-2.31.so", "x86_64-linux-gnu-gcc-12"),
        *("tar", "git", "pip3", "lua5.4", "g++-12", "vim", "ssh", "docker", "make", "R"),
    ],
)
def test_an_interpreter_is_known_by_its_last_name(path: str) -> None:
    assert is_interpreter(path)


@pytest.mark.parametrize(
    "path", ["/usr/bin/uptime", "/opt/sh/app", "pythonic", "findmnt", "python3.11x", "", "/bin/", "SH", "ld.so.conf"]
)
def test_other_programs_are_none(path: str) -> None:
    assert not is_interpreter(path)
