"""A folder of recordings: whole files or none, and errors that say why."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from tachikoma_orchestrator.recordings.folder import RecordingFolder
from tachikoma_orchestrator.recordings.store import FileKind, StoreFailed


@pytest.fixture
def store(tmp_path: Path) -> RecordingFolder:
    return RecordingFolder(tmp_path)


def seal(store: RecordingFolder, exec_id: str, text: bytes = b"seal") -> None:
    with store.create(exec_id, FileKind.SEAL) as file:
        file.write(text)


def test_parts_grow_and_go(store: RecordingFolder) -> None:
    assert store.unfinished() == store.parts("one") == store.finished() == []
    part = store.add_part("one", "output-1")
    part.write(b"a")
    other = store.add_part("one", "events-1")
    part.write(b"b")
    part.sync()
    assert (store.unfinished(), store.parts("one")) == (["one"], ["events-1", "output-1"])
    with closing(store.read_part("one", "output-1")) as file:
        assert file.read() == b"ab"
    store.remove_parts("one")
    # Writers of removed parts do no harm.
    part.write(b"c")
    for writer in (part, other):
        writer.close()
        writer.close()
    assert store.unfinished() == store.parts("one") == []
    store.remove_parts("one")


def test_a_file_appears_whole_or_not_at_all(store: RecordingFolder, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), store.create("one", FileKind.CAST) as file:
        file.write(b"half" * (1 // 0))
    assert not list((tmp_path / "finished").iterdir())
    with store.create("one", FileKind.CAST) as file:
        file.write(b"whole")
        assert store.finished() == []
    # Without a seal it is not finished.
    assert store.finished() == []
    seal(store, "one")
    seal(store, "two")
    assert store.finished() == ["one", "two"]
    with closing(store.open("one", FileKind.CAST)) as file:
        assert file.read() == b"whole"
    assert {path.stat().st_mode & 0o077 for path in tmp_path.rglob("*")} == {0}
    store.delete("one")
    store.delete("one")
    assert store.finished() == ["two"]
    with pytest.raises(StoreFailed, match="cannot read the recording: No such file"):
        store.open("one", FileKind.CAST)


def test_a_folder_that_is_missing_or_no_folder_is_reported(tmp_path: Path) -> None:
    missing = RecordingFolder(tmp_path / "missing")
    with pytest.raises(StoreFailed, match=r"cannot write recordings to .*missing: No such file"):
        missing.check()
    (tmp_path / "file").touch()
    with pytest.raises(StoreFailed, match="Not a directory"):
        RecordingFolder(tmp_path / "file").add_part("one", "output-1")
    RecordingFolder(tmp_path).check()
    assert list((tmp_path / "unfinished").iterdir()) == []


@pytest.mark.parametrize("exec_id", ["", "..", "a/b", ".hidden", "x.cast", "a" * 64])
def test_what_is_no_id_is_no_name_of_a_file(store: RecordingFolder, exec_id: str) -> None:
    for action in (store.parts, store.remove_parts, store.delete, lambda name: store.add_part(name, "output-1")):
        with pytest.raises(StoreFailed, match="is no id of an execution"):
            action(exec_id)
