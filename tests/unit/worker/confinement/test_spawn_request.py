"""A spawn request arrives in the layout of protocol.h."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tachikoma.vocabulary.isolation import Isolation, TmpScope
from tachikoma.vocabulary.limits import DEFAULT_OPEN_FILES
from tachikoma.vocabulary.requests import WindowSize
from tachikoma_worker.confinement import protocol
from tachikoma_worker.confinement.isolation.enclosure import Enclosure
from tachikoma_worker.confinement.protocol import InputMode
from tachikoma_worker.confinement.spawn_request import SpawnRequest

HEADER = (Path(__file__).parents[4] / "worker/spawner/protocol.h").read_text()
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True)
UINT = st.integers(0, 2**32 - 1)
SIZES = st.builds(WindowSize, *[st.integers(0, 65535)] * 4)
TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=20)


#: `struct spawn` of protocol.h.
SPAWN = "=10IQ4H64s4I3Q"


def parse(body: bytes) -> dict[str, Any]:
    """Read a spawn request as protocol.c does."""
    fields = struct.unpack_from(SPAWN, body)
    length, flags, uid, gid, umask, groups, arguments, variables, cgroups, mode, capabilities, *more = fields
    size, name, isolation = more[:4], more[4], more[5:]
    assert length == struct.calcsize(SPAWN)
    rest = body[length:]
    ids = struct.unpack_from(f"={groups}I", rest)
    strings = rest[4 * groups :].split(b"\0")
    assert strings.pop() == b""
    assert len(strings) >= 3 + arguments + variables
    variables_end = 3 + arguments + variables
    return {
        "uid": uid, "gid": gid, "umask": umask, "flags": flags, "capabilities": capabilities, "groups": ids,
        "cgroups": cgroups, "name": name.rstrip(b"\0").decode(), "paths": strings[:3], "input": mode,
        "size": WindowSize(*size), "argv": strings[3 : 3 + arguments],
        "environment": strings[3 + arguments : variables_end], "isolation": isolation,
        "more paths": strings[variables_end:],
    }  # fmt: skip


@given(
    NAMES, UINT, UINT, st.lists(UINT, max_size=5), st.lists(TEXT, min_size=1, max_size=4),
    st.dictionaries(st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), TEXT, max_size=4),
    st.none() | st.just(5), st.lists(st.integers(6, 9), max_size=3), SIZES,
)  # fmt: skip
def test_a_request_is_read_as_it_was_written(
    name: str, uid: int, gid: int, groups: list[int], argv: list[str], environment: dict[str, str],
    stdin_fd: int | None, cgroup_fds: list[int], size: WindowSize,
) -> None:  # fmt: skip
    mode = InputMode.TERMINAL if stdin_fd is None else InputMode.FILE
    request = SpawnRequest(
        name=name, uid=uid, gid=gid, groups=groups, capabilities=3, work_dir_root="/srv", work_dir="app",
        executable="/bin/true", executable_fd=4, argv=argv, environment=environment, stdin_fd=stdin_fd,
        cgroup_fds=cgroup_fds, unified=bool(cgroup_fds), input=mode, terminal=size,
    )  # fmt: skip
    body, descriptors = request.encode()
    found = parse(body)
    assert (found["name"], found["uid"], found["gid"], list(found["groups"])) == (name, uid, gid, groups)
    assert found["flags"] == (1 if cgroup_fds else 0)
    assert (found["input"], found["size"]) == (mode, size)
    assert found["paths"] == [b"/srv", b"app", b"/bin/true"]
    assert found["argv"] == [os.fsencode(word) for word in argv]
    assert found["environment"] == [os.fsencode(f"{key}={value}") for key, value in environment.items()]
    assert descriptors == [4, *([5] if stdin_fd else []), *cgroup_fds]
    assert len(descriptors) <= protocol.MAX_DESCRIPTORS
    assert found["cgroups"] == len(cgroup_fds)


def test_the_isolation_follows_the_name_and_its_paths_follow_the_environment() -> None:
    enclosure = Enclosure(
        Isolation.SEALED, masked=True, scoped=True, masks=("/data", "/run/x"), tmp=TmpScope.REQUESTER,
        tmp_folder="/data/tmp/1", tmp_bytes=4096, tmp_inodes=16, passwd="/data/accounts/1",
    )  # fmt: skip
    body, _ = SpawnRequest(
        name="job-7", uid=0, gid=0, groups=(), capabilities=0, work_dir_root="/", work_dir="", executable="/bin/true",
        executable_fd=3, argv=["true"], environment={"A": "1"}, enclosure=enclosure, open_files=64, probe=True,
    ).encode()  # fmt: skip
    found = parse(body)
    assert found["flags"] == 2
    assert found["isolation"] == [2, 1 | 4 | 8, 1, 2, 4096, 16, 64]
    assert found["more paths"] == [b"/data", b"/run/x", b"/data/tmp/1", b"/data/accounts/1"]


def test_bytes_of_names_that_are_no_text_arrive_unchanged() -> None:
    path = os.fsdecode(b"/bin/\xff")
    body, _ = SpawnRequest(
        name="job-7", uid=0, gid=0, groups=(), capabilities=0, work_dir_root="/", work_dir="",
        executable=path, executable_fd=3, argv=[path], environment={},
    ).encode()  # fmt: skip
    assert parse(body)["argv"] == [b"/bin/\xff"]


def test_the_least_size_is_that_of_the_c_header() -> None:
    found = re.search(r"#define SPAWN_BYTES (\d+)", HEADER)
    assert found
    # The fields of isolation, and the number of files, came later.
    assert int(found[1]) == struct.calcsize(SPAWN.removesuffix("4I3Q"))


def test_the_default_number_of_open_files_is_that_of_the_c_header() -> None:
    found = re.search(r"#define DEFAULT_FILES (\d+)", HEADER)
    assert found
    assert int(found[1]) == DEFAULT_OPEN_FILES
