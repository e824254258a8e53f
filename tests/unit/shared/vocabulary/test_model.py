"""What all values share: names, JSON, and mistakes in words."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from tachikoma.errors import InvalidRequest
from tachikoma.vocabulary.audit import ExecAuditLog
from tachikoma.vocabulary.model import Model, describe_validation_error
from tachikoma.vocabulary.policies import ExecPolicy, RateLimitConfig
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.results import ExecResponse
from tachikoma.vocabulary.states import ExecState

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def request(**values: Any) -> ExecRequest:
    return ExecRequest(**{"agent_id": "agent-1", "command": ["/bin/true"], **values})


class Limited(Model):
    request: ExecRequest


class Point(Model):
    """A value of this test."""

    first_name: int
    other: tuple[int, ...] = ()


def test_a_value_is_read_by_either_name_and_written_by_that_of_json() -> None:
    assert Point(first_name=1) == Point(**{"firstName": 1}) == Point.from_dict({"firstName": 1})
    assert json.loads(Point(first_name=1, other=(2,)).to_json()) == {"firstName": 1, "other": [2]}


def test_a_value_is_frozen_and_rejects_unknown_names() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Point(first_name=1).first_name = 2
    with pytest.raises(ValidationError, match="other_name"):
        Point.model_validate({"firstName": 1, "other_name": 2})


#: Spec 534, word for word.
SPEC_NAMES: dict[type, set[str]] = {
    ExecRequest: {
        "id", "agentId", "command", "workDir", "environment", "stdin", "timeout", "user", "interactive", "tty",
        "requestedBy", "requestTime",
    },
    ExecResponse: {
        "id", "exitCode", "stdout", "stderr", "startTime", "endTime", "duration", "error", "cancelled",
    },
    ExecPolicy: {
        "allowedCommands", "deniedCommands", "allowedUsers", "allowedWorkDirs", "maxTimeout", "requireApproval",
        "allowInteractive", "allowTty",
    },
    RateLimitConfig: {"requestsPerMinute", "concurrentLimit", "queueSize", "queueTimeout"},
    ExecAuditLog: {
        "id", "agentId", "requestedBy", "command", "exitCode", "startTime", "duration", "clientIp", "authorized",
        "policyApplied",
    },
}  # fmt: skip

EXAMPLES: list[Any] = [
    request(stdin=b"\0\xff"),
    ExecResponse(id="e", agent_id="a", state=ExecState.FAILED, stdout=b"\xff", start_time=NOW, exit_code=3),
    ExecPolicy(name="p", subjects=("s",), agents=("a",)),
    RateLimitConfig(),
    ExecAuditLog(cursor="1-0", time=NOW, event="admitted"),
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda value: type(value).__name__)
def test_json_uses_the_names_of_the_spec(example: Any) -> None:
    written = set(json.loads(example.to_json()))
    assert SPEC_NAMES[type(example)] <= written
    assert all(name.isalnum() for name in written)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda value: type(value).__name__)
def test_what_was_written_reads_as_the_same(example: Any) -> None:
    assert type(example).model_validate_json(example.to_json()) == example
    assert example.to_dict() == json.loads(example.to_json())


def test_a_description_names_each_wrong_field_in_one_line() -> None:
    with pytest.raises(ValidationError) as caught:
        ExecRequest.model_validate({"agentId": "a.b", "command": "ls", "timeout": "soon", "bogus": 1})
    told = describe_validation_error(caught.value)
    assert "\n" not in told
    for field in ("agentId: ", "command: ", "timeout: ", "bogus: "):
        assert field in told
    assert "Value error" not in told


def test_a_description_does_not_repeat_what_was_sent() -> None:
    with pytest.raises(InvalidRequest) as caught:
        request(environment={"TOKEN": "hunter2\0"}, stdin="hunter2")
    assert "hunter2" not in str(caught.value)


def test_a_value_that_a_caller_writes_is_refused_with_the_names_of_python() -> None:
    with pytest.raises(InvalidRequest) as caught:
        ExecRequest(agent_id="a.b", command=(), work_dir="tmp", environment={"workDir": "\0"})
    fields = [part.partition(": ")[0] for part in str(caught.value).split("; ")]
    assert fields == ["invalid ExecRequest", "command", "work_dir", "environment"]
    assert "invalid ExecRequest: agent_id: " in str(caught.value)


def test_what_is_read_is_refused_with_the_names_of_json() -> None:
    with pytest.raises(ValidationError) as caught:
        Limited.model_validate({"request": {"agentId": "a", "command": ["x"], "workDir": "tmp"}})
    assert describe_validation_error(caught.value).startswith("request.workDir: ")


def test_a_description_names_the_place_of_a_nested_field() -> None:
    with pytest.raises(ValidationError) as caught:
        Point.model_validate({"firstName": 1, "other": [1, "x"]})
    assert describe_validation_error(caught.value).startswith("other.1: ")
