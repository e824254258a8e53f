"""Endings: whatever they are made of, a receipt can contain them."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from authority import Authority
from tachikoma.identity.signed_messages import Receipt
from tachikoma.identity.signing import sign, verify
from tachikoma.vocabulary.limits import ResourceUsage
from tachikoma.vocabulary.results import KillReceipt
from tachikoma.vocabulary.states import ExecState
from tachikoma_worker.execution.receipt import Output
from tachikoma_worker.output.records import CLIPPED, MAX_TEXT_CHARS, Ending, Facts, Totals, receipt_text

#: Any text that Python can hold, lone surrogates included.
TEXT = st.text(st.characters()) | st.text(st.characters(categories=("Cs", "Cc")), max_size=50)
LONG = st.builds(lambda text, times: text * times, TEXT, st.sampled_from([1, 100, 10_000]))
INTEGERS = st.integers() | st.sampled_from([-1, 0, 255, 256, 2**31, 2**63, 2**64, -(2**63)])
KILLS = st.none() | st.builds(
    KillReceipt, empty=st.booleans(), whole=st.booleans(), survivors=st.lists(st.integers(1, 2**31 - 1), max_size=32)
)
ENDINGS = st.builds(
    Ending, state=st.sampled_from(ExecState), exit_code=INTEGERS, signal=INTEGERS, error=LONG, executable=LONG,
    started_ms=INTEGERS, duration_us=INTEGERS, kill=KILLS,
)  # fmt: skip


def receipt_of(ending: Ending, authority_id: str = "spiffe://tachikoma.local/agent/web-1") -> Receipt:
    output = Output.unknown()
    return Receipt(
        iss=authority_id, iat=int(time.time()), jti="job-7", order_sha256="", ended_ms=1, chunks=0,
        stdout=output.stdout_digest, stderr=output.stderr_digest, **ending.model_dump(),
    )  # fmt: skip


@given(ENDINGS)
def test_every_ending_fits_into_a_receipt(ending: Ending) -> None:
    receipt = receipt_of(ending)
    assert receipt.state.terminal
    assert receipt.state is ending.state
    assert json.loads(receipt.model_dump_json())["error"] == ending.error


@given(ENDINGS)
def test_an_ending_is_read_from_the_spool_as_it_was_written(ending: Ending) -> None:
    assert Ending.model_validate_json(ending.model_dump_json()) == ending


def test_an_ending_of_the_worst_is_signed_and_verified(authority: Authority) -> None:
    svid = authority.svid("spiffe://tachikoma.local/agent/web-1")
    ending = Ending(state=ExecState.LOST, error="\udcff\0\U0010ffff" * 10_000, executable="\x01" * 10_000)
    receipt = receipt_of(ending)
    assert verify(sign(svid, receipt), Receipt, svid.bundle, svid.spiffe_id) == receipt


@given(LONG)
def test_a_text_is_clipped_only_if_it_is_too_long(text: str) -> None:
    clipped = receipt_text(text)
    assert len(clipped) <= MAX_TEXT_CHARS
    clipped.encode()
    if len(text) <= MAX_TEXT_CHARS // 6:
        assert clipped == text.encode("utf-8", "backslashreplace").decode()
    if len(text) > MAX_TEXT_CHARS:
        assert clipped.endswith(CLIPPED)


def test_the_bounds_are_those_of_the_receipt() -> None:
    output = Output.unknown()
    receipt = receipt_of(Ending(state=ExecState.FAILED, error="x" * 9000, executable="x" * 9000))
    assert (len(receipt.error), len(receipt.executable)) == (MAX_TEXT_CHARS, MAX_TEXT_CHARS)
    with pytest.raises(ValidationError, match="at most 8192"):
        Receipt(**{**receipt.model_dump(), "error": "x" * (MAX_TEXT_CHARS + 1)})
    assert (output.chunks, output.stdout, output.stdout_digest.truncated) == (0, b"", True)


@pytest.mark.parametrize("state", [ExecState.CANCELLED, ExecState.TIMED_OUT])
def test_a_state_that_needs_an_empty_command_is_lost_without_one(state: ExecState) -> None:
    kill = KillReceipt(empty=False, whole=True, survivors=(7,))
    for given_kill in (None, kill):
        ending = Ending(state=state, error="killed", started_ms=1, kill=given_kill)
        assert ending.state is ExecState.LOST
        assert ending.error == f"killed; it is not known whether it is {state}"
    assert Ending(state=state, started_ms=1, kill=KillReceipt(empty=True, whole=True)).state is state
    assert Ending(state=state).state is state


@pytest.mark.parametrize("state", [state for state in ExecState if not state.terminal])
def test_a_state_that_is_not_final_is_lost(state: ExecState) -> None:
    assert Ending(state=state).state is ExecState.LOST


def test_an_ending_keeps_what_is_within_bounds() -> None:
    usage = ResourceUsage(cpu_seconds=1.5, peak_memory=7)
    ending = Ending(
        state=ExecState.FAILED, exit_code=3, signal=9, error="é", executable="/bin/x", started_ms=5, duration_us=6,
        usage=usage,
    )  # fmt: skip
    receipt = receipt_of(ending)
    assert (receipt.exit_code, receipt.signal, receipt.error, receipt.executable) == (3, 9, "é", "/bin/x")
    assert (receipt.started_ms, receipt.duration_us, receipt.usage) == (5, 6, usage)


def test_facts_take_a_path_that_is_no_text() -> None:
    facts = Facts(
        host="h", order_sha256="", executable="/bin/\udcff", started_ms=1, began_ns=1, timeout=1, kill_grace=1
    )
    assert facts.executable == r"/bin/\udcff"
    assert Facts.model_validate_json(facts.model_dump_json()) == facts


def test_totals_of_an_unknown_stream_are_nothing() -> None:
    assert Totals().kept(1) == (0, b"", b"")
