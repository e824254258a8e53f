"""The bytes between worker and spawner: as the C side reads and writes them, and nothing that it cannot have sent."""

from __future__ import annotations

import errno
import os
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma_worker.confinement import protocol
from tachikoma_worker.confinement.protocol import Exit, Held, Hello, Operation, SpawnRequest, Step, Survivors

HEADER = (Path(__file__).parents[4] / "worker/spawner/protocol.h").read_text()
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True)
UINT = st.integers(0, 2**32 - 1)
DECODERS = (
    protocol.decode_header,
    protocol.decode_hello,
    protocol.decode_spawned,
    protocol.decode_survivors,
    protocol.decode_listed,
    protocol.decode_exited,
    protocol.decode_failure,
)


def held(
    name: str, pid: int, *, exited: int = 0, code: int = 0, status: int = 0, user: int = 0, system: int = 0
) -> bytes:
    return struct.pack("=64sIIiiQQ", name.encode(), pid, exited, code, status, user, system)


# --- the same numbers on both sides -----------------------------------------------------------------------------------


def defined(name: str) -> str:
    found = re.search(rf"#define {name} (.+?)(?:/\*.*)?$", HEADER, re.MULTILINE)
    assert found, name
    return found[1].strip()


def test_operations_are_those_of_the_c_header() -> None:
    numbers = re.findall(r"\b(?:OP|REPLY|EVENT)_(\w+) = (\d+)", HEADER)
    assert {name: int(number) for name, number in numbers} == {item.name: item.value for item in Operation}


def test_steps_are_those_of_the_c_header() -> None:
    names = re.findall(r"\bSTEP_(\w+)", HEADER)
    assert dict(zip(names, range(1, len(names) + 1), strict=True)) == {item.name: item.value for item in Step}


def test_bounds_are_those_of_the_c_header() -> None:
    assert int(defined("PROTOCOL_VERSION")) == protocol.PROTOCOL_VERSION
    assert defined("MAX_BODY") == "(320 * 1024)"
    assert protocol.MAX_BODY_BYTES == 320 * 1024
    assert 2 + int(defined("MAX_CGROUPS")) == protocol.MAX_DESCRIPTORS


# --- round trips ------------------------------------------------------------------------------------------------------


@given(st.sampled_from(list(Operation)), st.integers(0, 2**64 - 1), st.binary(max_size=300))
def test_a_header_is_read_as_it_was_written(operation: Operation, tag: int, body: bytes) -> None:
    message = protocol.encode_message(operation, tag, body)
    header = protocol.decode_header(message)
    assert (header.length, header.operation, header.tag) == (len(body), operation, tag)
    assert message[protocol.HEADER_BYTES :] == body


@given(UINT, UINT, st.integers(0, 2**64 - 1))
def test_a_hello_is_read_as_it_was_written(version: int, uid: int, capabilities: int) -> None:
    body = struct.pack("=IIQ", version, uid, capabilities)
    assert len(body) == protocol.HELLO_BYTES
    assert protocol.decode_hello(body) == Hello(version, uid, capabilities)


@given(st.lists(UINT, max_size=32), UINT)
def test_survivors_are_read_as_they_were_written(pids: list[int], count: int) -> None:
    body = struct.pack("=II32I", count, len(pids), *pids, *([0] * (32 - len(pids))))
    assert protocol.decode_survivors(body) == Survivors(count, pids)


@given(st.lists(st.tuples(NAMES, UINT), max_size=20), UINT)
def test_a_list_is_read_as_it_was_written(commands: list[tuple[str, int]], place: int) -> None:
    body = struct.pack("=II", place, len(commands)) + b"".join(held(name, pid) for name, pid in commands)
    found, following = protocol.decode_listed(body)
    assert found == [Held(name, pid, None) for name, pid in commands]
    assert following == place


@given(NAMES, st.integers(0, 255))
def test_an_exit_is_read_as_it_was_written(name: str, status: int) -> None:
    body = held(name, 7, exited=1, code=os.CLD_EXITED, status=status, user=1_500_000, system=500_000)
    assert protocol.decode_exited(body) == Held(name, 7, Exit(status, 0, 2.0))


@pytest.mark.parametrize("code", [os.CLD_KILLED, os.CLD_DUMPED])
def test_an_exit_by_a_signal_has_the_code_of_shells(code: int) -> None:
    ended = protocol.decode_exited(held("job-7", 7, exited=1, code=code, status=9)).exit
    assert ended == Exit(137, 9, 0.0)
    assert ended.status == -9
    assert Exit(3, 0, 0.0).status == 3


def test_a_failure_names_its_step() -> None:
    failure = protocol.decode_failure(struct.pack("=Ii", Step.WORK_DIR, errno.ENOENT))
    assert (failure.step, failure.errno) == (Step.WORK_DIR, errno.ENOENT)
    assert str(failure) == "work dir: No such file or directory"


@given(NAMES)
def test_a_name_is_padded_to_its_field(name: str) -> None:
    assert protocol.encode_name(name) == name.encode() + bytes(64 - len(name))
    assert protocol.encode_signal(name, 15) == protocol.encode_name(name) + struct.pack("=II", 15, 0)


# --- spawn requests ---------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=20)


def parse(body: bytes) -> dict[str, Any]:
    """Read a spawn request as protocol.c does."""
    fields = struct.unpack_from("=IIIIQIIII64s", body)
    uid, gid, umask, flags, capabilities, groups, arguments, variables, cgroups, name = fields
    rest = body[struct.calcsize("=IIIIQIIII64s") :]
    ids = struct.unpack_from(f"={groups}I", rest)
    strings = rest[4 * groups :].split(b"\0")
    assert strings.pop() == b""
    assert len(strings) == 3 + arguments + variables
    return {
        "uid": uid, "gid": gid, "umask": umask, "flags": flags, "capabilities": capabilities, "groups": ids,
        "cgroups": cgroups, "name": name.rstrip(b"\0").decode(), "paths": strings[:3],
        "argv": strings[3 : 3 + arguments], "environment": strings[3 + arguments :],
    }  # fmt: skip


@given(
    NAMES, UINT, UINT, st.lists(UINT, max_size=5), st.lists(TEXT, min_size=1, max_size=4),
    st.dictionaries(st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), TEXT, max_size=4),
    st.none() | st.just(5), st.lists(st.integers(6, 9), max_size=3),
)  # fmt: skip
def test_a_request_is_read_as_it_was_written(
    name: str, uid: int, gid: int, groups: list[int], argv: list[str], environment: dict[str, str],
    stdin_fd: int | None, cgroup_fds: list[int],
) -> None:  # fmt: skip
    request = SpawnRequest(
        name=name, uid=uid, gid=gid, groups=groups, capabilities=3, work_dir_root="/srv", work_dir="app",
        executable="/bin/true", executable_fd=4, argv=argv, environment=environment, stdin_fd=stdin_fd,
        cgroup_fds=cgroup_fds, unified=bool(cgroup_fds),
    )  # fmt: skip
    body, descriptors = request.encode()
    found = parse(body)
    assert (found["name"], found["uid"], found["gid"], list(found["groups"])) == (name, uid, gid, groups)
    assert found["flags"] == (1 if stdin_fd else 0) | (2 if cgroup_fds else 0)
    assert found["paths"] == [b"/srv", b"app", b"/bin/true"]
    assert found["argv"] == [os.fsencode(word) for word in argv]
    assert found["environment"] == [os.fsencode(f"{key}={value}") for key, value in environment.items()]
    assert descriptors == [4, *([5] if stdin_fd else []), *cgroup_fds]
    assert len(descriptors) <= protocol.MAX_DESCRIPTORS
    assert found["cgroups"] == len(cgroup_fds)


def test_bytes_of_names_that_are_no_text_arrive_unchanged() -> None:
    path = os.fsdecode(b"/bin/\xff")
    body, _ = SpawnRequest(
        name="job-7", uid=0, gid=0, groups=(), capabilities=0, work_dir_root="/", work_dir="",
        executable=path, executable_fd=3, argv=[path], environment={},
    ).encode()  # fmt: skip
    assert parse(body)["argv"] == [b"/bin/\xff"]


# --- what the spawner cannot have sent --------------------------------------------------------------------------------


@given(st.binary(max_size=400))
def test_any_bytes_are_a_message_or_a_value_error(data: bytes) -> None:
    for decode in DECODERS:
        try:
            decode(data)
        except ValueError:
            continue


@given(
    st.sampled_from([held("job-7", 1), struct.pack("=II32I", 1, 1, *range(32))]),
    st.integers(0, 400),
    st.binary(max_size=4),
)
def test_a_body_that_is_cut_or_changed_is_a_message_or_a_value_error(body: bytes, cut: int, added: bytes) -> None:
    changed = body[:cut] + added + body[cut + len(added) :]
    for decode in DECODERS:
        try:
            decode(changed)
        except ValueError:
            continue


@pytest.mark.parametrize(
    ("decode", "body"),
    [
        (protocol.decode_header, b""),
        (protocol.decode_header, struct.pack("=IIQ", protocol.MAX_BODY_BYTES + 1, 2, 1)),
        (protocol.decode_survivors, struct.pack("=II32I", 40, 33, *range(32))),
        (protocol.decode_listed, struct.pack("=II", 0, 2) + held("job-7", 1)),
        (protocol.decode_listed, struct.pack("=II", 0, 2**32 - 1)),
        (protocol.decode_exited, held("job-7", 1)),
        (protocol.decode_exited, held("job-7", 1)[:-1]),
        (protocol.decode_exited, b"\xff" * 104),
        (protocol.decode_failure, struct.pack("=Ii", 99, 2)),
        (protocol.decode_spawned, b""),
    ],
)
def test_a_message_that_the_spawner_cannot_have_sent_is_a_value_error(decode: Any, body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(body)
