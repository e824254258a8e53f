"""Finishing a recording: what the seal says of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tachikoma.dev.ca import DevelopmentCA
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.signed_messages import RecordingSeal
from tachikoma.identity.signing import verify
from tachikoma.identity.spiffe import service_id
from tachikoma.identity.svid import Svid
from tachikoma.sessions.asciicast import read_cast
from tachikoma.vocabulary.audit import AuditedRequest
from tachikoma.vocabulary.results import ExecResponse, OutputSummary
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.recordings.finishing import finish
from tachikoma_orchestrator.recordings.folder import RecordingFolder
from tachikoma_orchestrator.recordings.parts import Event, Origin, Output, encode
from tachikoma_orchestrator.recordings.store import FileKind, StoreFailed

REQUEST = AuditedRequest(command=("bash", "-c", "echo 'a b'"), interactive=True, tty=True)
ORIGIN = Origin("web-1", "spiffe://e/user/a", "shell@12", REQUEST, False, 5_000_000)
OUTPUT = (Output(1, 0, 5_000_010, False, b"caf\xc3"), Output(2, 4, 5_000_020, False, b"\xa9\r\n"))
EVENTS = (Event(0, 5_000_001, "r", "100x40"), Event(4, 5_000_015, "m", "observed"))


@pytest.fixture(scope="module")
def svid(tmp_path_factory: pytest.TempPathFactory) -> Svid:
    folder = tmp_path_factory.mktemp("identity")
    DevelopmentCA(folder / "ca", "e").issue(service_id("e", "orchestrator"), folder / "orchestrator")
    return FileSvidSource(folder / "orchestrator").current()


@pytest.fixture
def store(tmp_path: Path) -> RecordingFolder:
    return RecordingFolder(tmp_path)


@pytest.fixture
def write(store: RecordingFolder) -> Callable[..., None]:
    def write(name: str, *lines: Origin | Output | Event, end: bytes = b"") -> None:
        part = store.add_part("job-7", name)
        part.write(b"".join(map(encode, lines)) + end)
        part.close()

    return write


def result(data: bytes) -> ExecResponse:
    digest = hashlib.sha256(data).hexdigest()
    return ExecResponse(
        id="job-7", agent_id="web-1", state=ExecState.FAILED, exit_code=3,
        stdout_summary=OutputSummary(total_bytes=len(data), sha256=digest),
    )  # fmt: skip


def read(store: RecordingFolder, kind: FileKind) -> bytes:
    with closing(store.open("job-7", kind)) as file:
        return file.read()


def test_two_recorders_make_one_recording_that_the_receipt_vouches_for(
    store: RecordingFolder, write: Callable[..., None], svid: Svid
) -> None:
    # The first one was killed while it wrote, and the second one continues.
    write("output-b", ORIGIN, OUTPUT[0], end=b'["o",2,')
    write("output-a", Origin("web-1", "spiffe://e/user/a", "shell@12", REQUEST, False, 6_000_000), *OUTPUT)
    write("events-c", *EVENTS)
    whole = b"".join(output.data for output in OUTPUT)
    seal = finish(store, "job-7", result(whole), svid)
    assert seal is not None
    assert (seal.problem, seal.exit_code, seal.duration_us, seal.began_ms) == ("", 3, 20, 5000)
    assert verify(read(store, FileKind.SEAL).decode(), RecordingSeal, svid.bundle, svid.spiffe_id) == seal
    cast = read(store, FileKind.CAST)
    assert (len(cast), hashlib.sha256(cast).hexdigest()) == (seal.size, seal.sha256)
    assert hashlib.sha256(read(store, FileKind.TEXT)).hexdigest() == seal.text_sha256
    header, events = read_cast(cast.splitlines(keepends=True))
    assert (header.columns, header.rows, header.timestamp) == (100, 40, 5)
    assert header.command == """bash -c 'echo '"'"'a b'"'"''"""
    assert [tuple(event) for event in events] == [
        (1, "r", "100x40"), (10, "o", "caf"), (15, "m", "observed"), (20, "o", "é\r\n"), (20, "x", "3")
    ]  # fmt: skip
    assert read(store, FileKind.TEXT).decode() == "20\tcafé\n"
    assert store.unfinished() == []


@pytest.mark.parametrize(
    ("signed", "problem"),
    [
        (b"other\r\n", "the output differs from the one that its agent signed for"),
        (b"caf\xc3\xa9\r\nmore", "4 bytes of output are missing"),
        (None, "the result of the execution is unknown"),
    ],
)
def test_output_that_the_receipt_does_not_vouch_for_is_named(
    store: RecordingFolder, write: Callable[..., None], svid: Svid, signed: bytes | None, problem: str
) -> None:
    write("output-a", ORIGIN, *OUTPUT)
    seal = finish(store, "job-7", None if signed is None else result(signed), svid)
    assert seal is not None
    assert seal.problem == problem
    write("output-a", ORIGIN, OUTPUT[1])
    seal = finish(store, "job-7", result(b"caf\xc3\xa9\r\n"), svid)
    assert seal is not None
    assert seal.problem == "4 bytes of output are missing"
    assert b"4 bytes of output are missing here" in read(store, FileKind.CAST)


def test_events_without_a_recorder_are_no_recording(
    store: RecordingFolder, write: Callable[..., None], svid: Svid
) -> None:
    write("events-c", *EVENTS)
    assert finish(store, "job-7", None, svid) is None
    assert store.unfinished() == store.finished() == []


def test_after_a_failure_it_is_finished_again(
    store: RecordingFolder, write: Callable[..., None], svid: Svid, tmp_path: Path
) -> None:
    write("output-a", ORIGIN, *OUTPUT)
    (tmp_path / "finished").touch()
    with pytest.raises(StoreFailed, match="cannot write the recording"):
        finish(store, "job-7", None, svid)
    (tmp_path / "finished").unlink()
    assert finish(store, "job-7", None, svid, problem="the disk was full") is not None
    assert store.finished() == ["job-7"]
