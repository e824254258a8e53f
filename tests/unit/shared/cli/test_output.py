"""Forms of output, --watch, and errors as text or JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
import typer

from tachikoma import AgentInfo, InvalidRequest, NotFound, PermissionDenied
from tachikoma.cli import output
from tachikoma.cli.output import Output

FIRST, SECOND = AgentInfo(id="web-1"), AgentInfo(id="web-2")


def shown(capsys: pytest.CaptureFixture[str], form: Output) -> str:
    output.show_list((FIRST, SECOND), form, name=lambda item: item.id, text=lambda found: print(f"{len(found)} agents"))
    return capsys.readouterr().out


def test_a_list_has_four_forms(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, Output.TEXT) == "2 agents\n"
    assert shown(capsys, Output.NAME) == "web-1\nweb-2\n"
    assert json.loads(shown(capsys, Output.JSON)) == [FIRST.to_dict(), SECOND.to_dict()]
    lines = shown(capsys, Output.JSONL).splitlines()
    assert [json.loads(line) for line in lines] == [FIRST.to_dict(), SECOND.to_dict()]


def test_a_value_has_four_forms(capsys: pytest.CaptureFixture[str]) -> None:
    forms = {}
    for form in Output:
        output.show_value(FIRST, form, name=lambda item: item.id, text=lambda item: print(f"agent {item.id}"))
        forms[form] = capsys.readouterr().out
    assert (forms[Output.TEXT], forms[Output.NAME]) == ("agent web-1\n", "web-1\n")
    assert json.loads(forms[Output.JSON]) == json.loads(forms[Output.JSONL]) == FIRST.to_dict()
    assert len(forms[Output.JSONL].splitlines()) == 1


def test_a_value_without_a_name_says_so() -> None:
    with pytest.raises(InvalidRequest, match="-o name: the output of this command has no names; use -o json"):
        output.show_value(FIRST, Output.NAME, text=lambda _: None)


def test_watching_shows_again_until_ctrl_c(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(output.time, "sleep", sleep)
    forms: list[Output] = []
    with pytest.raises(typer.Exit) as ended:
        output.watch(forms.append, Output.JSON, again=True)
    # What is printed again and again is no single document.
    assert (ended.value.exit_code, forms) == (130, [Output.JSONL] * 3)
    assert set(pauses) == {output.WATCH_SECONDS}
    output.watch(forms.append, Output.JSON, again=False)
    assert forms[3:] == [Output.JSON]
    assert capsys.readouterr().out == ""


def test_an_error_is_a_line_for_people(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output._Chosen, "output", Output.TEXT)
    output.report(NotFound("there is no execution 'x'"))
    assert capsys.readouterr() == ("", "tachikoma: there is no execution 'x'\n")


def test_an_error_is_json_for_programs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output._Chosen, "output", Output.JSON)
    output.report(PermissionDenied("no policy grants it", metadata={"rule": "default"}, retry_after_seconds=2))
    assert json.loads(capsys.readouterr().err) == {
        "error": {
            "reason": "PERMISSION_DENIED", "code": "PERMISSION_DENIED", "message": "no policy grants it",
            "metadata": {"rule": "default"}, "retryAfterSeconds": 2,
        }
    }  # fmt: skip


def test_the_form_that_was_chosen_is_known_to_the_end(run: Any, client: Any) -> None:
    client.answers["status"] = NotFound("there is no execution 'x'")
    run("status", "x", "-o", "json")
    assert output.chosen_output() is Output.JSON
    run("status", "x")
    assert output.chosen_output() is Output.TEXT


@pytest.mark.parametrize("line", [("logs", "job-7"), ("batches", "logs", "b-1"), ("exec", "-n", "web-1", "ls")])
def test_names_of_output_without_names_are_refused(run: Any, client: Any, line: tuple[str, ...]) -> None:
    at = 1 if line[0] in ("logs", "exec") else 2
    done = run(*line[:at], "-o", "name", *line[at:])
    assert "-o name" in (done.err or str(done.error))
    assert done.code != 0
    assert client.calls == []
