"""The key of the HMAC over commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tachikoma.errors import ConfigurationError
from tachikoma_orchestrator.processes.parts import MIN_KEY_BYTES, read_audit_key


def test_without_a_file_there_is_no_key() -> None:
    assert read_audit_key(None) == b""


def test_a_key_is_the_whole_content_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"k" * (MIN_KEY_BYTES - 1) + b"\n")
    assert read_audit_key(tmp_path / "key") == b"k" * (MIN_KEY_BYTES - 1) + b"\n"


def test_a_short_or_missing_key_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"k" * (MIN_KEY_BYTES - 1))
    with pytest.raises(ConfigurationError, match=r"has 31 bytes; at least 32 are required"):
        read_audit_key(tmp_path / "key")
    with pytest.raises(ConfigurationError, match="cannot read the audit key"):
        read_audit_key(tmp_path / "none")
