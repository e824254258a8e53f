"""The commands that are sent without the models of the library."""

from __future__ import annotations

from typing import Any

import pytest

from tachikoma import ExecOutput, ExecResponse, ExecState
from tachikoma.cli.commands import ordinary
from tachikoma.vocabulary.messages import OutputKind

PLAIN = {"agent_id": "web-1", "command": ["true"], "work_dir": "", "user": "", "environment": {}}


@pytest.mark.parametrize(
    "values",
    [{}, {"environment": {"A": "1"}}, {"work_dir": "/tmp"}, {"user": "root"}, {"id": "job-7"}, {"command": ["a", "b"]}],
)
def test_a_usual_request_is_ordinary(values: dict[str, Any]) -> None:
    message = ordinary.ordinary_request(PLAIN | values, b"in")
    assert message is not None
    assert (list(message.command), message.stdin) == ((PLAIN | values)["command"], b"in")


@pytest.mark.parametrize(
    "values", [{"limits": {"pids": 5}}, {"isolation": "sealed"}, {"user": "#1"}, {"id": "no id"}, {"work_dir": "tmp"}]
)
def test_another_one_is_left_to_the_models(values: dict[str, Any]) -> None:
    assert ordinary.ordinary_request(PLAIN | values, b"") is None


def test_a_usual_command_makes_no_other_client(run: Any, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("it needs no models")

    monkeypatch.setattr("tachikoma.cli.commands.attended.AsyncClient", refuse)
    result = ExecResponse(id="job-7", agent_id="web-1", state=ExecState.FAILED, exit_code=3)
    client.answers["execute_stream"] = lambda _, **__: [ExecOutput(id="job-7", kind=OutputKind.RESULT, result=result)]
    assert run("exec", "--env", "A=1", "--timeout", "5s", "web-1", "true").code == 3
    (name, (request,), _) = client.calls[-1]
    assert (name, request.environment, request.timeout.total_seconds()) == ("execute_stream", {"A": "1"}, 5)
    with pytest.raises(AssertionError, match="needs no models"):
        run("exec", "-o", "json", "web-1", "true")
