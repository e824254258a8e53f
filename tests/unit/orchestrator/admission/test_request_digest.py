"""The digest of a request: a change of any field that matters changes it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tachikoma.vocabulary.limits import ResourceLimits
from tachikoma.vocabulary.requests import MAX_TIMEOUT, ExecRequest
from tachikoma_orchestrator.admission.admit import request_digest

#: Fields that do not count: a repetition has the same id, and is made at another time.
NOT_IN_THE_DIGEST = {"id", "request_time"}

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True)
SIZES = st.none() | st.integers(2**20, 2**40)
#: Values of each field that counts.
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "agent_id": IDS,
    "command": st.lists(TEXT, max_size=3).map(lambda rest: ["/bin/x", *rest]),
    "work_dir": st.just("") | TEXT.map(lambda text: f"/{text}"),
    "environment": st.dictionaries(TEXT.filter(lambda name: name and "=" not in name), TEXT, max_size=3),
    "stdin": st.binary(max_size=16),
    "timeout": st.none() | st.timedeltas(timedelta(microseconds=1), MAX_TIMEOUT),
    "user": st.sampled_from(["", "root", "web", "db"]),
    "limits": st.none() | st.builds(ResourceLimits, memory=SIZES, pids=st.none() | st.integers(1, 9), io_write=SIZES),
    "interactive": st.booleans(),
    "tty": st.booleans(),
    "requested_by": TEXT,
}
REQUESTS = st.fixed_dictionaries(FIELDS)


def test_every_field_of_a_request_counts_or_is_listed() -> None:
    assert set(FIELDS) | NOT_IN_THE_DIGEST == set(ExecRequest.model_fields)
    assert not set(FIELDS) & NOT_IN_THE_DIGEST


@pytest.mark.parametrize("field", FIELDS)
@given(data=st.data())
def test_a_change_of_one_field_changes_the_digest(field: str, data: st.DataObject) -> None:
    values = data.draw(REQUESTS)
    one = ExecRequest(**values)
    other = ExecRequest(**{**values, field: data.draw(FIELDS[field])})
    assume(getattr(one, field) != getattr(other, field))
    assert request_digest(one) != request_digest(other)


@pytest.mark.parametrize("name", ResourceLimits.model_fields)
def test_each_limit_changes_the_digest(name: str) -> None:
    limited = ResourceLimits(**{name: {"cpus": 2, "cpu_weight": 2, "pids": 2}.get(name, 2**20)})
    digests = {
        request_digest(ExecRequest(agent_id="a", command=("x",), limits=limits))
        for limits in (None, ResourceLimits(), limited)
    }
    assert len(digests) == 3


@given(REQUESTS, st.datetimes(timezones=st.just(UTC)), IDS)
def test_a_repetition_has_the_same_digest(values: dict[str, Any], when: datetime, exec_id: str) -> None:
    repeated = ExecRequest(**values, id=exec_id, request_time=when)
    assert request_digest(ExecRequest(**values)) == request_digest(repeated)


@given(st.dictionaries(TEXT.filter(lambda name: name and "=" not in name), TEXT, min_size=2, max_size=4))
def test_the_order_of_variables_does_not_count(environment: dict[str, str]) -> None:
    base = {"agent_id": "a", "command": ("x",)}
    turned = dict(reversed(environment.items()))
    assert request_digest(ExecRequest(**base, environment=environment)) == request_digest(
        ExecRequest(**base, environment=turned)
    )
