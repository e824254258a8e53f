"""Final states, from a receipt, from the ledger, and of a record that cannot be trusted."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from tachikoma.errors import RecordAltered
from tachikoma.identity.signed_messages import OutputDigest, Receipt
from tachikoma.vocabulary.clock import from_ms
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.executions.final_state import FinalState, VerifiedReceipt, matches
from tachikoma_orchestrator.executions.record import Record, record_altered


def digest(output: bytes, total: bytes | None = None, *, truncated: bool = False) -> OutputDigest:
    total = output if total is None else total
    return OutputDigest(
        total_bytes=len(total), sha256=hashlib.sha256(total).hexdigest(), truncated=truncated,
        excerpt_sha256=hashlib.sha256(output).hexdigest(),
    )  # fmt: skip


def record(**fields: bytes) -> Record:
    known = {
        b"state": b"EXPIRED", b"agent": b"web-1", b"history": b"QUEUED 1;EXPIRED 2000", b"admitted_ms": b"1",
        b"deadline_ms": b"2000", b"settled_ms": b"2000", b"error": b"not started before its queue timeout",
    }  # fmt: skip
    return Record.parse("job-7", {**known, **{name.encode(): value for name, value in fields.items()}})


def test_a_receipt_gives_output_and_exit_code() -> None:
    receipt = Receipt(
        iss="spiffe://x/agent/web-1", iat=1, jti="job-7", order_sha256="o", state=ExecState.FAILED, exit_code=3,
        signal=0, error="", executable="/bin/false", started_ms=5, ended_ms=7, duration_us=2000, chunks=1,
        stdout=digest(b"out"), stderr=digest(b"e", b"error", truncated=True),
    )  # fmt: skip
    response = FinalState.with_receipt("web-1", VerifiedReceipt(receipt, "token", b"out", b"e")).response()
    assert (response.id, response.agent_id, response.state, response.exit_code) == ("job-7", "web-1", "FAILED", 3)
    assert (response.stdout, response.stdout_summary.truncated) == (b"out", False)
    assert (response.stderr, response.stderr_summary.truncated, response.stderr_summary.total_bytes) == (b"e", True, 5)
    assert (response.start_time, response.end_time) == (from_ms(5), from_ms(7))
    # The output is no longer stored: the digests still say how much there was.
    gone = FinalState.with_receipt("web-1", VerifiedReceipt(receipt, "token", b"", b"")).response()
    assert (gone.stdout, gone.stdout_summary.truncated, gone.stdout_summary.total_bytes) == (b"", True, 3)


@pytest.mark.parametrize("state", ["EXPIRED", "LOST", "CANCELLED", "REJECTED"])
def test_without_a_receipt_there_is_a_reason_and_no_exit_code(state: str) -> None:
    response = FinalState.without_receipt(record(state=state.encode(), exit_code=b"0")).response()
    assert (response.state, response.exit_code, response.error) == (state, -1, "not started before its queue timeout")
    assert (response.stdout, response.end_time, response.cancelled) == (b"", from_ms(2000), state == "CANCELLED")


@pytest.mark.parametrize(
    "fields", [{"settled_ms": b"x"}, {"settled_ms": b"9" * 40}, {"started_ms": b"9" * 40}, {"agent": b"no id"}]
)
def test_a_record_with_impossible_fields_still_gives_an_answer(fields: dict[str, bytes]) -> None:
    final = FinalState.without_receipt(record(**fields))
    with pytest.raises(RecordAltered, match="job-7"):
        final.response()


def test_each_caller_gets_an_error_of_its_own() -> None:
    final = FinalState("job-7", record_altered("job-7", "a reason"))
    errors: list[Any] = []
    for _ in range(2):
        with pytest.raises(RecordAltered, match="job-7 cannot be verified: a reason") as caught:
            final.response()
        errors.append(caught.value)
    assert errors[0] is not errors[1]
    assert errors[0].metadata == errors[1].metadata == {"id": "job-7"}


def test_an_excerpt_matches_only_its_own_digest() -> None:
    assert matches(b"out", digest(b"out"))
    assert not matches(b"oux", digest(b"out"))
    # A part of the output is accepted only if the agent says that it is a part.
    assert matches(b"o", digest(b"o", b"out", truncated=True))
    assert not matches(b"o", digest(b"o", b"out"))
