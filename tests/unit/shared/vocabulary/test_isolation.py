"""Levels of isolation, scopes of temporary folders, and what a receipt says of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tachikoma.vocabulary.isolation import Isolation, TmpScope, strictest, strictest_tmp
from tachikoma.vocabulary.results import IsolationReport

LEVELS = st.none() | st.sampled_from(Isolation)
SCOPES = st.none() | st.sampled_from(TmpScope)


def test_levels_and_scopes_have_the_numbers_of_the_spawner() -> None:
    assert [level.rank for level in (Isolation.SHARED, Isolation.PRIVATE, Isolation.SEALED)] == [0, 1, 2]
    assert [scope.rank for scope in (TmpScope.HOST, TmpScope.REQUESTER, TmpScope.EXECUTION)] == [0, 1, 2]


@given(st.lists(LEVELS, max_size=4))
def test_no_demand_is_lowered_by_another(levels: list[Isolation | None]) -> None:
    found = strictest(*levels)
    given_levels = [level for level in levels if level is not None]
    assert (found in given_levels) if given_levels else found is None
    assert all(found is not None and found.rank >= level.rank for level in given_levels)


@given(st.lists(SCOPES, max_size=4))
def test_the_narrowest_scope_counts(scopes: list[TmpScope | None]) -> None:
    found = strictest_tmp(*scopes)
    given_scopes = [scope for scope in scopes if scope is not None]
    assert (found in given_scopes) if given_scopes else found is None
    assert all(found is not None and found.rank >= scope.rank for scope in given_scopes)


def test_a_report_of_a_hostile_agent_has_bounds() -> None:
    report = IsolationReport(level=Isolation.PRIVATE, tmp=TmpScope.EXECUTION, parts=("processes",))
    assert IsolationReport.model_validate_json(report.to_json()) == report
    for wrong in ({"parts": ["x"] * 33}, {"parts": ["x" * 65]}, {"missing": ["x" * 257]}, {"level": "open"}):
        with pytest.raises(ValidationError):
            IsolationReport.model_validate({**report.to_dict(), **wrong})
