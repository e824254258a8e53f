"""How the words of `tachikoma run` become a request."""

from __future__ import annotations

from pathlib import Path

import pytest

from tachikoma.cli.commands import run
from tachikoma.errors import InvalidRequest
from tachikoma.vocabulary.batches import TargetState


@pytest.mark.parametrize(
    ("given", "targets", "command"),
    [
        (["web*", "--", "uptime", "-p"], ("web*",), ["uptime", "-p"]),
        (["web*", "!web7", "--", "grep", "--", "x"], ("web*", "!web7"), ["grep", "--", "x"]),
        (["web*", "uptime", "-p"], ("web*",), ["uptime", "-p"]),
        (["web*"], ("web*",), []),
        ([], (), []),
    ],
)
def test_targets_are_before_the_dashes(given: list[str], targets: tuple[str, ...], command: list[str]) -> None:
    assert run._split(given, None, elsewhere=False) == (targets, command)


def test_with_a_file_all_words_are_the_command(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("web[1-3] # three\nrole=db\n")
    assert run._split(["grep", "--", "x"], file, elsewhere=False) == (("web[1-3]", "role=db"), ["grep", "--", "x"])
    assert run._split(["uptime"], None, elsewhere=True) == ((), ["uptime"])
    assert run._split([], None, elsewhere=True) == ((), [])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="No such file"):
        run._split(["x"], tmp_path / "none", elsewhere=False)
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(InvalidRequest, match="bytes"):
        run._split(["x"], tmp_path / "bytes", elsewhere=False)


def test_states_of_a_retry() -> None:
    assert run._states("failed") == ()
    assert run._states("timed-out,not_started") == (TargetState.TIMED_OUT, TargetState.NOT_STARTED)
    with pytest.raises(InvalidRequest, match="'odd' is no state; write failed"):
        run._states("odd")


def test_a_request_that_breaks_a_bound_is_one_message() -> None:
    with pytest.raises(InvalidRequest, match="stop"):
        run._request({"targets": ("a",), "command": ["x"], "stop_on": ("ODD",)})
    request = run._request({"targets": ("a",), "command": ["x"], "parallel": None, "wave": "5"})
    assert (request.parallel, request.wave) == ("50", "5")
