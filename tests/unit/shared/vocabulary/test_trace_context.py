from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.vocabulary.trace_context import TraceParent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_a_traceparent_is_read_and_written_in_the_form_of_version_0() -> None:
    text = f"00-{TRACE}-{SPAN}-01"
    assert TraceParent.parse(text) == TraceParent(TRACE, SPAN, 1)
    assert str(TraceParent(TRACE, SPAN, 1)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "traceparent",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"01-{TRACE}-{SPAN}-01{'-x' * 200}",
        f"00-{TRACE[:-1]}\N{ARABIC-INDIC DIGIT ONE}-{SPAN}-01",
    ],
)
def test_a_text_in_another_form_names_no_span(text: str) -> None:
    assert TraceParent.parse(text) is None


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    assert TraceParent.parse(f"01-{TRACE}-{SPAN}-ff-more") == TraceParent(TRACE, SPAN, 3)


@given(st.text(alphabet="0123456789abcdef-", max_size=70) | st.text(max_size=70))
def test_whatever_is_read_has_the_strict_form_when_it_is_written(text: str) -> None:
    found = TraceParent.parse(text)
    if found is not None:
        assert TraceParent.parse(str(found)) == found
        assert len(str(found)) == 55
