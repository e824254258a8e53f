"""Checks that several RPCs need."""

from __future__ import annotations

import pytest

from tachikoma.errors import InvalidRequest
from tachikoma_orchestrator.api.service import DEFAULT_PAGE, MAX_PAGE, page_size, printable_id


def test_the_size_of_a_page_has_a_default_and_a_bound() -> None:
    assert page_size(0, "limit") == DEFAULT_PAGE
    assert page_size(7, "limit") == 7
    assert page_size(MAX_PAGE, "limit") == MAX_PAGE
    with pytest.raises(InvalidRequest, match=f"limit is at most {MAX_PAGE}"):
        page_size(MAX_PAGE + 1, "limit")


def test_an_id_that_was_not_validated_is_short_and_printable() -> None:
    assert printable_id("exec-1") == "exec-1"
    shown = printable_id("\x1b[31m" + "x" * 10_000)
    assert "\x1b" not in shown
    assert len(shown) < 200
