"""The trace that a signed order names."""

from __future__ import annotations

from tachikoma.vocabulary.order_trace import OrderTrace

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_an_agent_reads_a_trace_with_later_fields() -> None:
    raw = f'{{"parent": "00-{TRACE}-{SPAN}-01", "signed_ms": 5, "state": "x"}}'
    assert OrderTrace.model_validate_json(raw) == OrderTrace(parent=f"00-{TRACE}-{SPAN}-01", signed_ms=5)
