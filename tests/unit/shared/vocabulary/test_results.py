"""Results, statuses and messages about executions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from tachikoma.errors import ExecutionFailed
from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.results import (
    Approval,
    CancelOutcome,
    CancelResponse,
    ExecOutput,
    ExecResponse,
    ExecStatus,
    KillReceipt,
    OutputSummary,
)
from tachikoma.vocabulary.states import ExecState

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def test_check_gives_back_a_success() -> None:
    response = ExecResponse(id="e", agent_id="a", state=ExecState.SUCCEEDED, exit_code=0)
    assert response.check() is response


@pytest.mark.parametrize("state", [state for state in ExecState if state is not ExecState.SUCCEEDED])
def test_check_raises_for_every_other_end(state: ExecState) -> None:
    with pytest.raises(ExecutionFailed, match=rf"execution e on a ended {state}: exit code 3"):
        ExecResponse(id="e", agent_id="a", state=state, exit_code=3).check()


def test_the_answer_to_a_cancel_survives_json() -> None:
    status = ExecStatus(
        id="e", agent_id="a", state=ExecState.CANCELLED, command=("x",), requested_by="s", request_time=NOW
    )
    answer = CancelResponse(outcome=CancelOutcome.CANCELLED, status=status)
    assert CancelResponse.model_validate_json(answer.to_json()) == answer


def test_an_output_chunk_survives_json_with_any_byte() -> None:
    output = ExecOutput(id="e", kind=OutputKind.STDOUT, seq=1, time=NOW, data=bytes(range(256)))
    assert ExecOutput.model_validate_json(output.to_json()) == output


@pytest.mark.parametrize(
    "values",
    [{"signals": (0,)}, {"signals": (65,)}, {"signals": (9,) * 9}, {"survivors": (0,)}, {"survivors": (1,) * 33}],
)
def test_a_kill_receipt_has_bounds(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        KillReceipt(empty=True, whole=True, **values)


@pytest.mark.parametrize("digest", ["", "AB" * 32, "ab" * 31, "ab" * 32 + "\n"])
def test_an_approval_names_a_sha256(digest: str) -> None:
    status = ExecStatus(
        id="e", agent_id="a", state=ExecState.PENDING_APPROVAL, command=("x",), requested_by="s", request_time=NOW
    )
    made = ExecRequest(agent_id="a", command=("x",))
    with pytest.raises(ValidationError, match="digest"):
        Approval(status=status, request=made, digest=digest, policy="p@1")
    assert Approval(status=status, request=made, digest="ab" * 32, policy="p@1").digest


def test_output_is_text_and_json() -> None:
    values: dict[str, Any] = {"id": "job-7", "agent_id": "web-1", "state": ExecState.SUCCEEDED}
    response = ExecResponse(**values, stdout=b'{"a": [1, "\xc3\xa4"]}\n', stderr=b"\xff!")
    assert (response.text, response.error_text) == ('{"a": [1, "ä"]}\n', "\ufffd!")
    assert response.json() == {"a": [1, "ä"]}
    assert ExecOutput(id="job-7", kind=OutputKind.STDOUT, data="ä".encode()).text == "ä"
    with pytest.raises(ExecutionFailed, match="the output of job-7 on web-1 is not JSON: "):
        ExecResponse(**values, stdout=b"no").json()
    cut = ExecResponse(**values, stdout=b"1", stdout_summary=OutputSummary(total_bytes=9, truncated=True))
    with pytest.raises(ExecutionFailed, match="the output of job-7 has 9 bytes, and only a part is here"):
        cut.json()
