"""Rules of recordings as text."""

from __future__ import annotations

import pytest

from tachikoma.vocabulary.recordings import NOT_RECORDED, RecordMode, RecordRule


@pytest.mark.parametrize("mode", RecordMode)
@pytest.mark.parametrize("includes_input", [False, True])
def test_a_rule_comes_back_from_its_text(mode: RecordMode, includes_input: bool) -> None:
    rule = RecordRule(mode, includes_input)
    assert RecordRule.parse(rule.encode()) == (NOT_RECORDED if mode is RecordMode.OFF else rule)


@pytest.mark.parametrize("text", ["", "always", "+input", "required +input", "REQUIRED"])
def test_another_text_records_nothing(text: str) -> None:
    assert RecordRule.parse(text) == NOT_RECORDED
