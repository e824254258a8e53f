"""A watched file and its content, without a format of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tachikoma.config.file_watch import FileWatch
from tachikoma.errors import ConfigurationError


class Number:
    """The content of a file in this test."""

    def __init__(self, value: int) -> None:
        self.value = value

    @classmethod
    def load(cls, path: Path) -> Number:
        try:
            return cls(int(path.read_text()))
        except (OSError, ValueError) as error:
            raise ConfigurationError(str(error)) from error


def replace(path: Path, text: str) -> None:
    """Replace a file by another inode, which is seen even within one tick of the clock."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "number"
    found.write_text("1")
    return found


def test_the_first_content_must_be_valid(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        FileWatch(tmp_path / "missing", Number)


def test_a_change_is_activated_once(path: Path) -> None:
    watch = FileWatch(path, Number)
    since = watch.since
    assert not watch.reload()
    replace(path, "2")
    assert watch.reload()
    assert (watch.current.value, watch.error) == (2, "")
    assert watch.since >= since
    assert not watch.reload()


def test_an_invalid_change_keeps_the_content_and_names_the_error_until_it_is_mended(path: Path) -> None:
    watch = FileWatch(path, Number)
    old, since = watch.current, watch.since
    replace(path, "x")
    assert watch.reload()
    assert (watch.current, watch.since) == (old, since)
    assert "invalid literal" in watch.error
    assert not watch.reload()
    path.unlink()
    assert watch.reload()
    assert "No such file" in watch.error
    replace(path, "3")
    assert watch.reload()
    assert (watch.current.value, watch.error) == (3, "")


@pytest.mark.parametrize("error", [RecursionError("deep"), MemoryError(), KeyError("x"), AssertionError()])
def test_an_error_that_nobody_expects_keeps_the_content_too(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    watch = FileWatch(path, Number)
    old = watch.current

    def fail(_: Path) -> Number:
        raise error

    monkeypatch.setattr(Number, "load", fail)
    replace(path, "2")
    assert watch.reload()
    assert watch.current is old
    assert watch.error == f"{path} cannot be loaded: {error!r}"
