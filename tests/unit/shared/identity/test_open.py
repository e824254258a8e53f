"""The choice of a process's identity source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from tachikoma.errors import ConfigurationError
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.open import ENDPOINT_VARIABLE, open_identity
from tachikoma.vocabulary.types import IdentityPlace

ALICE = "spiffe://tachikoma.local/user/alice"


@pytest.fixture(autouse=True)
def _no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENDPOINT_VARIABLE, raising=False)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_is_a_source(authority: Any, tmp_path: Path, kind: type) -> None:
    authority.write(tmp_path, ALICE)
    source = open_identity(kind(tmp_path))
    assert isinstance(source, FileSvidSource)
    assert str(source.current().spiffe_id) == ALICE


@pytest.mark.parametrize("place", [None, ""])
def test_without_a_source_the_message_names_both_ways(place: str | None) -> None:
    with pytest.raises(ConfigurationError, match=f"--identity, or the socket .* in {ENDPOINT_VARIABLE}"):
        open_identity(place)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:8081", "/run/spire.sock"])
def test_only_unix_sockets_are_supported(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv(ENDPOINT_VARIABLE, address)
    with pytest.raises(ConfigurationError, match="only unix:///path is supported"):
        open_identity(None)


def test_a_setting_is_a_folder_or_an_address() -> None:
    place: TypeAdapter[str | Path] = TypeAdapter(IdentityPlace)
    assert place.validate_python("/etc/tachikoma") == Path("/etc/tachikoma")
    assert place.validate_python("unix:///run/spire.sock") == "unix:///run/spire.sock"
