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

from tachikoma.vocabulary.requests import WindowSize
from tachikoma_worker.confinement import protocol
from tachikoma_worker.confinement.protocol import (
    INPUT_BYTES,
    Exit,
    Held,
    Hello,
    InputMode,
    InputStatus,
    Operation,
    Step,
    Survivors,
)

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
    protocol.decode_held,
    protocol.decode_input,
)


def held(
    name: str, pid: int, *, exited: int = 0, code: int = 0, status: int = 0, user: int = 0, system: int = 0
) -> bytes:
    return struct.pack("=64sIIiiQQ", name.encode(), pid, exited, code, status, user, system) + bytes(32)


# --- the same numbers on both sides -----------------------------------------------------------------------------------


def defined(name: str) -> str:
    found = re.search(rf"#define {name} (.+?)(?:/\*.*)?$", HEADER, re.MULTILINE)
    assert found, name
    return found[1].strip()


def test_operations_are_those_of_the_c_header() -> None:
    numbers = re.findall(r"\b(?:OP_|REPLY_|(?=EVENT_))(\w+) = (\d+)", HEADER)
    names = {"EVENT_EXITED": "EXITED", "EVENT_INPUT": "INPUT_EVENT"}
    found = {names.get(name, name): int(number) for name, number in numbers}
    assert found == {item.name: item.value for item in Operation}


def test_steps_are_those_of_the_c_header() -> None:
    names = re.findall(r"\bSTEP_(\w+)", HEADER)
    assert dict(zip(names, range(1, len(names) + 1), strict=True)) == {item.name: item.value for item in Step}


def test_input_modes_are_those_of_the_c_header() -> None:
    numbers = re.findall(r"\bINPUT_(\w+) = (\d+), +/\* (?:/dev|an attached|a pipe|a terminal)", HEADER)
    assert {name: int(number) for name, number in numbers} == {item.name: item.value for item in InputMode}


def test_bounds_are_those_of_the_c_header() -> None:
    assert int(defined("PROTOCOL_VERSION")) == protocol.PROTOCOL_VERSION
    assert defined("MAX_BODY") == "(320 * 1024)"
    assert protocol.MAX_BODY_BYTES == 320 * 1024
    assert 2 + int(defined("MAX_CGROUPS")) == protocol.MAX_DESCRIPTORS
    assert defined("INPUT_BYTES") == "(256 * 1024)"
    assert protocol.INPUT_BYTES == 256 * 1024


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


SIZES = st.builds(WindowSize, *[st.integers(0, 65535)] * 4)


@given(NAMES, st.integers(0, 2**64 - 1), st.binary(max_size=300), SIZES)
def test_requests_about_input_have_the_layout_of_the_c_header(
    name: str, offset: int, data: bytes, size: WindowSize
) -> None:
    padded = protocol.encode_name(name)
    assert protocol.encode_input(name, offset, data) == padded + struct.pack("=Q", offset) + data
    numbers = struct.pack("=HHHH", size.rows, size.columns, size.x_pixels, size.y_pixels)
    assert protocol.encode_resize(name, size) == padded + numbers
    assert protocol.encode_signal(name, 2, foreground=True) == padded + struct.pack("=II", 2, 1)


@given(
    NAMES, st.integers(0, 2**64 - 1), st.sampled_from(InputMode), st.integers(0, INPUT_BYTES), st.integers(0, 15), SIZES
)  # fmt: skip
def test_a_state_of_input_is_read_as_it_was_written(
    name: str, offset: int, mode: InputMode, room: int, flags: int, size: WindowSize
) -> None:
    numbers = offset, mode, flags, room, 0, size.rows, size.columns, size.x_pixels, size.y_pixels
    status = struct.pack("=QIIIIHHHH", *numbers)
    expected = InputStatus(
        offset, mode, room, ended=bool(flags & 1), broken=bool(flags & 2), echo=bool(flags & 4),
        canonical=bool(flags & 8), size=size,
    )  # fmt: skip
    assert protocol.decode_input(name.encode().ljust(64, b"\0") + status) == (name, expected)
    running = struct.pack("=64sIIiiQQ", name.encode(), 7, 0, 0, 0, 0, 0)
    assert protocol.decode_held(running + status) == Held(name, 7, None, expected)


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
        (protocol.decode_exited, b"\xff" * 136),
        (protocol.decode_held, held("job-7", 1)[:-1]),
        (protocol.decode_input, b"job-7".ljust(64, b"\0") + struct.pack("=QIIIIHHHH", 0, 4, 0, 0, 0, 0, 0, 0, 0)),
        (
            protocol.decode_input,
            b"job-7".ljust(64, b"\0") + struct.pack("=QIIIIHHHH", 0, 2, 0, 256 * 1024 + 1, 0, 0, 0, 0, 0),
        ),
        (protocol.decode_failure, struct.pack("=Ii", 99, 2)),
        (protocol.decode_spawned, b""),
    ],
)
def test_a_message_that_the_spawner_cannot_have_sent_is_a_value_error(decode: Any, body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(body)
