"""Variables of a batch's command."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.vocabulary.substitution import substituted


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{agent}", "web1"),
        ("--host={agent}.example", "--host=web1.example"),
        ("{label:role}-{label:role}", "db-db"),
        ("{{agent}}", "{agent}"),
        ("{{label:role}}", "{label:role}"),
        ("{print $1}", "{print $1}"),
        ("{}", "{}"),
        ("{other}", "{other}"),
    ],
)
def test_variables(text: str, value: str) -> None:
    assert substituted(text, "web1", {"role": "db"}) == value


def test_a_missing_label_is_named() -> None:
    with pytest.raises(ValueError, match="no label 'site'"):
        substituted("{label:site}", "web1", {"role": "db"})


@given(st.text(alphabet="{}agentlabel: x", max_size=30))
def test_a_value_is_never_read_as_a_variable(value: str) -> None:
    assert substituted("{label:a}", "web1", {"a": value}) == value
