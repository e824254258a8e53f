"""The environment of a command."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.vocabulary.requests import Terminal
from tachikoma_worker.confinement.account import Account
from tachikoma_worker.confinement.environment import PATH, environment
from tachikoma_worker.confinement.refusals import Refused

USER = Account("app", 1000, 1000, "/home/app", (1000,))
AGENTS_OWN = {"PATH": PATH, "HOME": "/home/app", "USER": "app", "LOGNAME": "app"}


def test_without_a_request_it_is_what_the_agent_sets() -> None:
    assert environment({}, USER) == {"LANG": "C.UTF-8", **AGENTS_OWN}


def test_a_request_may_set_the_language() -> None:
    assert environment({"LANG": "de_DE.UTF-8"}, USER)["LANG"] == "de_DE.UTF-8"


def test_a_terminal_has_its_type() -> None:
    assert environment({"TERM": "dumb"}, USER, Terminal(type="tmux-256color"))["TERM"] == "tmux-256color"
    assert environment({"TERM": "dumb"}, USER)["TERM"] == "dumb"


@given(st.dictionaries(st.from_regex(r"APP_[A-Z]{1,8}", fullmatch=True), st.text(max_size=20), max_size=5))
def test_the_agents_own_variables_win(requested: dict[str, str]) -> None:
    found = environment(requested, USER)
    assert found == {"LANG": "C.UTF-8", **requested, **AGENTS_OWN}


@pytest.mark.parametrize("name", ["LD_PRELOAD", "PATH", "HOME", "BASH_ENV", "LD_LIBRARY_PATH"])
def test_a_variable_that_is_never_allowed_is_refused(name: str) -> None:
    with pytest.raises(Refused, match=f"environment: .*{name}"):
        environment({"APP_X": "1", name: "x"}, USER)


def test_nothing_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACHIKOMA_SECRET", "x")
    assert "TACHIKOMA_SECRET" not in environment({}, USER)
