"""The table of the formats' versions."""

from __future__ import annotations

import json

import pytest

from tachikoma.identity.signed_messages import Receipt, SessionAnswer, SessionOffer, SignedRequest, WorkOrder
from tachikoma.vocabulary.formats import FORMATS, difference
from tachikoma.vocabulary.grants import Grant, GrantedExecutable
from tachikoma.vocabulary.requests import ExecRequest, Terminal


def test_signed_messages_are_written_in_the_version_of_the_table() -> None:
    sessions = (("session", SessionOffer), ("session", SessionAnswer))
    for name, kind in (("order", WorkOrder), ("request", SignedRequest), ("receipt", Receipt), *sessions):
        assert kind.model_fields["v"].default == FORMATS[name]


@pytest.mark.parametrize("theirs", [{}, FORMATS, {"order": 1}, {"other": 7}])
def test_the_same_versions_are_no_difference(theirs: dict[str, int]) -> None:
    assert difference(theirs) == ""


def test_a_difference_names_both_versions() -> None:
    assert difference({"order": 2}) == "order format 2 instead of 1"
    assert difference({"receipt": 0, "claim": 3}) == "receipt format 0 instead of 1, claim format 3 instead of 1"


# --- later fields -----------------------------------------------------------------------------------------------------

#: Fields of a request and of a grant in release 0.2.0, whose workers refuse any other.
REQUEST_FIELDS = {
    "agentId", "command", "environment", "id", "interactive", "limits", "requestTime", "requestedBy", "stdin",
    "timeout", "tty", "user", "workDir",
}  # fmt: skip
GRANT_FIELDS = {
    "capabilities", "denied", "executables", "interpreters", "kill_grace", "limits", "output", "work_dir_root"
}  # fmt: skip


def test_a_request_that_needs_no_later_field_is_written_as_before() -> None:
    request = ExecRequest(agent_id="web-1", command=("x",))
    assert set(json.loads(request.model_dump_json())) <= REQUEST_FIELDS
    assert set(json.loads(request.to_json())) <= REQUEST_FIELDS
    assert set(request.to_dict()) <= REQUEST_FIELDS
    assert ExecRequest.model_validate_json(request.to_json()) == request


def test_a_grant_that_needs_no_later_field_is_written_as_before() -> None:
    grant = Grant(executables=(GrantedExecutable(path="/bin/x"),))
    assert set(json.loads(grant.model_dump_json())) == GRANT_FIELDS
    assert Grant.model_validate_json(grant.model_dump_json()) == grant


def test_a_later_field_that_is_needed_is_written() -> None:
    grant = Grant(executables=(GrantedExecutable(path="/bin/x"),), idle_seconds=1.5, detached_seconds=2)
    written = json.loads(grant.model_dump_json())
    assert (written["idle_seconds"], written["detached_seconds"]) == (1.5, 2)
    assert Grant.model_validate_json(grant.model_dump_json()) == grant
    request = ExecRequest(agent_id="web-1", command=("x",), interactive=True, tty=True, terminal=Terminal(type="xterm"))
    assert "terminal" in json.loads(request.to_json())
    assert ExecRequest.model_validate_json(request.to_json()) == request
