"""Where a token is read from."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from tachikoma.client.membership import token_file as module
from tachikoma.client.membership.token_file import read_token
from tachikoma.errors import ConfigurationError, InvalidRequest
from tachikoma.identity.join_token import JoinToken


@pytest.fixture(autouse=True)
def parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are their text."""
    monkeypatch.setattr(JoinToken, "parse", lambda text: text.strip())


def test_a_token_is_read_from_a_file_or_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("from a file\n")
    assert read_token(str(tmp_path / "token")) == "from a file"
    monkeypatch.setattr(sys, "stdin", io.StringIO("from input\n"))
    assert read_token("-", prompt="token: ") == "from input"


def test_at_a_terminal_it_is_asked_for_without_an_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("read as a file"))
    monkeypatch.setattr(module.getpass, "getpass", lambda prompt: f"typed at {prompt}")
    assert read_token("-", prompt="token: ") == "typed at token:"
    assert read_token("-") == "read as a file"


def test_the_name_of_the_file_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError) as failure:
        read_token("tachikoma-join-secret")
    assert "secret" not in str(failure.value)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="contains no token"):
        read_token(str(tmp_path / "binary"))
    monkeypatch.undo()
    (tmp_path / "other").write_text("hello")
    with pytest.raises(InvalidRequest, match="not a complete join token"):
        read_token(str(tmp_path / "other"))
