"""Values of options that several commands share."""

from __future__ import annotations

from datetime import timedelta

import pytest
import typer

from tachikoma import InvalidRequest
from tachikoma.cli import options


def test_a_duration_names_its_option_when_it_is_wrong() -> None:
    assert options.duration("1h30m", "--timeout") == timedelta(minutes=90)
    with pytest.raises(InvalidRequest, match=r"^--timeout: "):
        options.duration("soon", "--timeout")


def test_pairs_name_their_option_when_one_is_wrong() -> None:
    assert options.pairs(["a=1", "b=x=y", "a=2"], "--env") == {"a": "2", "b": "x=y"}
    assert options.pairs(None, "--env") == {}
    with pytest.raises(InvalidRequest, match=r"^--env: 'a' is not NAME=value"):
        options.pairs(["a"], "--env")


@pytest.mark.parametrize(
    ("given", "command"), [(["ls", "-l"], ["ls", "-l"]), (["--", "ls"], ["ls"]), (["--", "--", "x"], ["--", "x"])]
)
def test_only_the_first_two_dashes_are_not_of_the_command(given: list[str], command: list[str]) -> None:
    assert options.remote_command(given) == command


def test_yes_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typer, "confirm", lambda *_, **__: pytest.fail("asked"))
    options.confirm("really", yes=True)


def test_without_a_terminal_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "interactive", lambda: False)
    with pytest.raises(InvalidRequest, match=r"^not a terminal: pass --yes to confirm$"):
        options.confirm("really", yes=False)
    with pytest.raises(InvalidRequest, match=r"^not a terminal: pass --reason TEXT$"):
        options.required_reason(None)
    assert options.required_reason("") == ""


def test_no_standard_input_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert not options.interactive()
