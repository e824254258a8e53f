"""The token of the next page of a list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.errors import InvalidRequest
from tachikoma_orchestrator.api.page_token import PageToken

TOKENS = st.builds(PageToken, st.integers(-(10**300), 10**300), st.integers(0, 10**9))


@given(TOKENS)
def test_reading_is_the_inverse_of_writing(token: PageToken) -> None:
    assert PageToken.parse(str(token)) == token


def test_no_token_is_the_beginning() -> None:
    assert PageToken.parse("") is None


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "1",
        ":",
        "1:",
        ":1",
        "1:-1",
        "1.5:1",
        "1:2:3",
        "[1, 2]",
        " 1:2",
        "1:2\n",
        "1e999:1",
        "²:1",
        "9" * 401 + ":1",
        "[" * 100_000,
    ],
)
def test_a_malformed_token_is_an_invalid_request(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a page token") as caught:
        PageToken.parse(text)
    assert len(str(caught.value)) < 200


@given(st.text(max_size=20))
def test_any_text_is_a_token_or_an_invalid_request(text: str) -> None:
    try:
        token = PageToken.parse(text)
    except InvalidRequest:
        return
    assert token is None or PageToken.parse(str(token)) == token


@given(st.lists(st.integers(0, 5), max_size=30))
def test_a_position_counts_the_executions_of_one_millisecond(times: list[int]) -> None:
    times.sort(reverse=True)
    token = None
    for number, at_ms in enumerate(times):
        token = PageToken.after(token, at_ms)
        assert token.at_ms == at_ms
        # Skipping `seen` entries of this time skips exactly those that were seen.
        assert token.seen == times[: number + 1].count(at_ms)
