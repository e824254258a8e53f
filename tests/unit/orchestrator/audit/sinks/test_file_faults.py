"""Faults at every step of a write to the chain of files: the chain holds, and no event is lost or doubled.

Each test runs the same work, in which files are written, signed and rotated, and fails one operation of the system in
it, for each operation. A fault is an error before or after the operation had its effect, or the end of the process.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit_chain import event, verified
from tachikoma.audit.chain import read_events
from tachikoma.errors import ConfigurationError
from tachikoma.identity.file_source import FileSvidSource
from tachikoma_orchestrator.audit.sinks import file as module
from tachikoma_orchestrator.audit.sinks.file import FileSink
from tachikoma_orchestrator.audit.sinks.sink import SinkUnavailable

pytestmark = pytest.mark.long

#: Events that are to be written, in batches of growing size.
EVENTS = 15
#: A size that some batches exceed.
ROTATE_BYTES = 1200
#: Attempts that a piece of work may need.
ATTEMPTS = 10


class Crash(BaseException):
    """The end of the process at some operation."""


class System:
    """The operations of the system that the sink uses; some of them fail."""

    def __init__(self, faults: dict[int, str]) -> None:
        #: The kind of the fault, by the number of the operation.
        self._faults = faults
        self.operations: list[str] = []
        #: Descriptors that are open: a process that ends closes them.
        self._open: set[int] = set()
        self.O_RDWR, self.O_APPEND, self.O_CREAT = os.O_RDWR, os.O_APPEND, os.O_CREAT
        self.O_CLOEXEC, self.O_RDONLY, self.O_DIRECTORY = os.O_CLOEXEC, os.O_RDONLY, os.O_DIRECTORY

    def _run(self, name: str, operation: Callable[[], Any], partly: Callable[[], Any] | None = None) -> Any:
        fault = self._faults.get(len(self.operations), "")
        self.operations.append(name)
        if fault in ("after", "crash after"):
            operation()
        if fault == "partly" and partly is not None:
            return partly()
        if fault == "crash partly":
            if partly is not None:
                partly()
            raise Crash
        if fault.startswith("crash"):
            raise Crash
        if fault in ("before", "after"):
            raise OSError(5, "Input/output error")
        return operation()

    def write(self, fd: int, data: Any) -> int:
        written: int = self._run(
            "write", lambda: os.write(fd, data), lambda: os.write(fd, bytes(data)[: len(data) // 2])
        )
        return written

    def fdatasync(self, fd: int) -> None:
        self._run("fdatasync", lambda: os.fdatasync(fd))

    def fsync(self, fd: int) -> None:
        self._run("fsync", lambda: os.fsync(fd))

    def ftruncate(self, fd: int, size: int) -> None:
        self._run("ftruncate", lambda: os.ftruncate(fd, size))

    def rename(self, source: Path, target: Path) -> None:
        self._run("rename", lambda: os.rename(source, target))

    def open(self, *args: Any) -> int:
        opened: list[int] = []

        def operation() -> int:
            opened.append(os.open(*args))
            return opened[0]

        try:
            fd: int = self._run("open", operation)
        except OSError:
            # A call that fails leaves no descriptor, whatever else it did.
            for fd in opened:
                os.close(fd)
            raise
        self._open.add(fd)
        return fd

    def close(self, fd: int) -> None:
        self._open.discard(fd)
        os.close(fd)

    def end_process(self) -> None:
        for fd in self._open:
            os.close(fd)
        self._open.clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def work(path: Path, identity: FileSvidSource, system: System) -> None:
    """Ship all events as the shipper does: from the sink's own position, again after a failure."""
    sink: FileSink | None = None
    failures = 0
    size = 1
    try:
        while sink is None or sink.seq < EVENTS or sink.unsigned:
            try:
                sink = sink or FileSink(path, identity, rotate_bytes=ROTATE_BYTES)
                batch = [event(seq) for seq in range(sink.seq + 1, min(sink.seq + size, EVENTS) + 1)]
                if batch:
                    sink.send(batch)
                    size += 1
                if size % 2 or sink.seq == EVENTS:
                    sink.checkpoint()
            except (SinkUnavailable, ConfigurationError):
                failures += 1
                assert failures < ATTEMPTS, "it never recovers"
            except Crash:
                system.end_process()
                sink = None
        sink.close()
    finally:
        system.end_process()


def run(path: Path, identity: FileSvidSource, faults: dict[int, str]) -> list[str]:
    """Do the work with faults, check what is on disk, and return the operations."""
    system = System(faults)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "os", system)
        patch.setattr(Path, "rename", lambda source, target: system.rename(source, target))
        work(path, identity, system)
    report = verified(path, identity)
    assert (report.findings, report.gaps, report.unsigned) == ([], [], 0), faults
    assert [item.seq for item in read_events(path)] == list(range(1, EVENTS + 1)), faults
    return system.operations


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[Path]:
    """A new path for each run."""
    return (tmp_path / str(number) / "audit.jsonl" for number in range(10_000))


KINDS = ["before", "after", "partly", "crash before", "crash after", "crash partly"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_one_fault_at_every_operation(kind: str, paths: Iterator[Path], identity: FileSvidSource) -> None:
    operations = run(next(paths), identity, {})
    assert {"open", "write", "fdatasync", "fsync", "rename"} <= set(operations)
    assert operations.count("rename") >= 3
    for number in range(len(operations)):
        run(next(paths), identity, {number: kind})


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_repair_after_a_fault_may_fail_as_well(kind: str, paths: Iterator[Path], identity: FileSvidSource) -> None:
    operations = run(next(paths), identity, {})
    for number in range(len(operations)):
        for first in ("before", "after"):
            run(next(paths), identity, {number: first, number + 1: kind})


@given(faults=st.dictionaries(st.integers(0, 60), st.sampled_from(KINDS), max_size=8))
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_any_faults(faults: dict[int, str], paths: Iterator[Path], identity: FileSvidSource) -> None:
    run(next(paths), identity, faults)


def test_a_lock_that_cannot_be_taken_leaves_no_descriptor(
    tmp_path: Path, identity: FileSvidSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(os.listdir("/proc/self/fd"))

    def broken(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(ConfigurationError, match="No locks available"):
        FileSink(tmp_path / "audit.jsonl", identity, rotate_bytes=ROTATE_BYTES)
    with suppress(OSError):
        assert len(os.listdir("/proc/self/fd")) == before
