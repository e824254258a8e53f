"""Steps on a host: for people each when it is done, for programs all in one document."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from json_schemas import checked
from tachikoma.cli.host_setup import report_steps
from tachikoma.cli.output import Output


class Failed(Exception):
    """A step failed."""


def steps(fails: bool = False) -> Iterator[str]:
    yield "write a"
    if fails:
        raise Failed
    yield "start b"


def test_people_read_each_step_and_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    report_steps(steps(), ["next: c"], Output.TEXT, none="nothing to do")
    assert capsys.readouterr().out == "write a\nstart b\nnext: c\n"


def test_people_read_a_step_before_a_later_one_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Failed):
        report_steps(steps(fails=True), (), Output.TEXT)
    assert capsys.readouterr().out == "write a\n"


def test_people_are_told_that_nothing_was_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    report_steps((), (), Output.TEXT, none="nothing to do")
    assert capsys.readouterr().out == "nothing to do\n"


@pytest.mark.parametrize("output", [Output.JSON, Output.JSONL])
def test_programs_get_one_document(output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    report_steps(steps(), ["next: c"], output, none="nothing to do")
    assert checked("setup", capsys.readouterr().out) == {"steps": ["write a", "start b"], "left": ["next: c"]}
    report_steps((), (), output, none="nothing to do")
    assert json.loads(capsys.readouterr().out) == {"steps": [], "left": []}


def test_what_is_left_is_asked_for_after_the_steps(capsys: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []

    def noted() -> Iterator[str]:
        for words in steps():
            yield words
            done.append(words)

    def left() -> Iterator[str]:
        yield f"{len(done)} steps done"

    report_steps(noted(), left(), Output.TEXT)
    assert capsys.readouterr().out.endswith("2 steps done\n")
