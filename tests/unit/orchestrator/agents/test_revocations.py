"""Revocations as values: which certificates they refuse, and how entries are read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.vocabulary.clock import from_ms
from tachikoma_orchestrator.agents.revocations import Revoked, parse

AT = datetime(2026, 7, 1, 12, 0, 0, 250_000, tzinfo=UTC)
AT_MS = 1_782_907_200_250
OPERATOR = "spiffe://tachikoma.local/user/root"
#: Until the year 2286.
TIMES_MS = st.integers(min_value=0, max_value=9_999_999_999_999)
UNREADABLE = [b"", b"nonsense", b"{}", b'{"active":false,"at_ms":-1,"details":{}}', b"\xff", b"[" * 9999]


def revoked(*, active: bool, at_ms: int = AT_MS) -> Revoked:
    return Revoked(at_ms, OPERATOR, "stolen", active=active)


def test_an_active_revocation_refuses_every_certificate_and_names_the_operator() -> None:
    why = revoked(active=True).refusal("web-1", AT + timedelta(days=365))
    assert why == f"agent web-1 was revoked at 2026-07-01 12:00:00 UTC by {OPERATOR}"


def test_a_past_revocation_refuses_only_what_was_issued_before_it() -> None:
    past = revoked(active=False)
    assert past.at == AT
    why = past.refusal("web-1", AT)
    assert why == "the certificate was issued before agent web-1 was revoked at 2026-07-01 12:00:00 UTC"
    assert past.refusal("web-1", AT + timedelta(milliseconds=1)) == ""


@given(TIMES_MS)
def test_a_certificate_is_accepted_from_the_first_whole_second_after_the_revocation(at_ms: int) -> None:
    past = revoked(active=False, at_ms=at_ms)
    # Certificates know whole seconds only (RFC 5280 section 4.1.2.5).
    assert past.accepted_from.microsecond == 0
    assert past.refusal("web-1", past.accepted_from) == ""
    assert past.refusal("web-1", past.accepted_from - timedelta(seconds=1)) != ""
    assert past.accepted_from - from_ms(at_ms) <= timedelta(seconds=1)


def test_the_error_of_executions_names_the_operator_and_the_reason() -> None:
    assert revoked(active=True).execution_error == f"its agent was revoked by {OPERATOR}: stolen"


def test_an_entry_is_read_as_the_script_writes_it() -> None:
    raw = b'{"active":true,"at_ms":%d,"details":{"by":"%s","reason":"stolen"}}' % (AT_MS, OPERATOR.encode())
    assert parse(raw) == revoked(active=True)
    assert parse(raw.replace(b"true", b"false")) == revoked(active=False)


@pytest.mark.parametrize("raw", UNREADABLE, ids=lambda raw: repr(raw[:20]))
def test_an_unreadable_entry_is_an_active_revocation(raw: bytes) -> None:
    entry = parse(raw)
    assert entry.active
    assert "cannot be read" in entry.reason
