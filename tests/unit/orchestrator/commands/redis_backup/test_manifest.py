"""The manifest of a backup."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tachikoma.errors import ConfigurationError
from tachikoma_orchestrator.commands.redis_backup import manifest as module
from tachikoma_orchestrator.commands.redis_backup.manifest import (
    MANIFEST,
    Content,
    Manifest,
    content_of,
    read_manifest,
)

GOOD = Manifest(
    made_at=datetime(2026, 1, 31, tzinfo=UTC), server="Valkey 9.1.2", replid="ab", offset=7, keys=3, audit_seq=9,
    files={"redis.rdb": Content(size=1, sha256="00")},
)  # fmt: skip


def test_a_manifest_survives_its_file(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(GOOD.model_dump_json())
    assert read_manifest(tmp_path) == GOOD


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 1}', "\x00", '{"files": 7}'])
def test_another_file_is_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ConfigurationError, match="is no manifest of a backup"):
        read_manifest(tmp_path)


def test_an_interrupted_backup_and_a_newer_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is no complete backup"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text(GOOD.model_copy(update={"format": 2}).model_dump_json())
    with pytest.raises(ConfigurationError, match="has format 2; this version reads format 1"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100])
def test_the_digest_is_that_of_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(module, "BLOCK", 8)
    content = bytes(range(size))
    (tmp_path / "file").write_bytes(content)
    assert content_of(tmp_path / "file") == Content(size=size, sha256=hashlib.sha256(content).hexdigest())
