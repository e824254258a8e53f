"""What a spawner can enforce on its host, found by trials over a connection."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tachikoma.vocabulary.isolation import Isolation
from tachikoma_worker.confinement.isolation.abilities import NO_SCOPES, NO_SIGNAL_SCOPE, Abilities, find_abilities
from tachikoma_worker.confinement.protocol import Operation, Step

#: `isolation` and `confine` of `struct spawn`.
FIELDS = struct.Struct("=II")
OFFSET = 120


@contextmanager
def spawner(answer: Callable[[int, int], Step | None]) -> Iterator[socket.socket]:
    """A connection to a spawner that lets each trial fail in the step that `answer` returns, if it returns one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    def receive(length: int) -> bytes:
        data = b""
        while len(data) < length:
            part, descriptors, _, _ = socket.recv_fds(theirs, length - len(data), 8)
            for descriptor in descriptors:
                os.close(descriptor)
            if not part:
                raise EOFError
            data += part
        return data

    def send(operation: int, tag: int, body: bytes = b"") -> None:
        theirs.sendall(struct.pack("=IIQ", len(body), operation, tag) + body)

    def serve() -> None:
        held = False
        while True:
            try:
                length, operation, tag = struct.unpack("=IIQ", receive(16))
                body = receive(length)
            except (EOFError, OSError):
                return
            if operation == Operation.SPAWN:
                failed = answer(*FIELDS.unpack_from(body, OFFSET))
                if failed is not None:
                    send(Operation.FAILED, tag, struct.pack("=Ii", failed, 1))
                    continue
                held = True
                send(Operation.SPAWN, tag, bytes(8))
            elif held:
                # It has not ended at the first question.
                held = False
                send(Operation.FAILED, tag, struct.pack("=Ii", Step.HELD, 16))
                send(Operation.EXITED, 0, bytes(136))
            else:
                send(operation, tag)

    serving = threading.Thread(target=serve)
    serving.start()
    with theirs:
        with ours:
            yield ours
        serving.join()


def test_a_host_that_can_do_everything_has_no_warning() -> None:
    with spawner(lambda level, flags: None) as connection:
        found = find_abilities(connection, 0)
        assert not connection.getblocking()
    assert found == Abilities({Isolation.PRIVATE: "", Isolation.SEALED: ""})
    assert list(found.warnings()) == []
    assert found.possible() == ("shared", "private", "sealed")


def test_the_failed_step_is_the_reason() -> None:
    with spawner(lambda level, flags: Step.NAMESPACES if level else None) as connection:
        found = find_abilities(connection, 0)
    assert found.levels[Isolation.PRIVATE] == "namespaces: Operation not permitted"
    assert (found.masks, found.read_only) == ("", "namespaces: Operation not permitted")
    assert [warning.split(":")[0] for warning in found.warnings()] == [
        "commands cannot be isolated at private", "commands cannot be isolated at sealed",
        "commands of root need hostAccess of policy",
    ]  # fmt: skip


def test_without_scopes_the_levels_work_and_the_open_part_is_named() -> None:
    with spawner(lambda level, flags: Step.SCOPES if flags & 4 else None) as connection:
        found = find_abilities(connection, 0)
    assert found.scopes == NO_SCOPES
    assert not any(found.levels.values())
    assert list(found.warnings()) == [
        f"isolated commands reach {NO_SCOPES}", f"commands of root with hostAccess send {NO_SIGNAL_SCOPE}",
    ]  # fmt: skip


def test_files_of_cgroups_that_cannot_be_protected_are_named_and_left() -> None:
    with spawner(lambda level, flags: Step.CGROUP_FILES if flags & 16 else None) as connection:
        found = find_abilities(connection, 0)
    assert not any(found.levels.values())
    assert list(found.warnings()) == ["isolated commands reach files of cgroups: cgroup files: Operation not permitted"]


def test_a_spawner_that_is_not_root_isolates_nothing() -> None:
    with socket.socket() as unconnected:
        found = find_abilities(unconnected, 1000)
    assert found == Abilities.none("the spawner is not root")
    assert found.possible() == ("shared",)


def test_a_spawner_that_leaves_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(OSError, match=r"closed|Broken pipe|reset"):
        find_abilities(ours, 0)
