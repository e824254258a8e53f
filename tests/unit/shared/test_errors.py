"""The tree of errors."""

from __future__ import annotations

import pytest

import tachikoma
from tachikoma import errors
from tachikoma.errors import AgentOffline, AgentUnknown, NotFound, TachikomaError, Unavailable, by_reason

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, TachikomaError)]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_is_found_by_its_name_on_the_wire(kind: type[TachikomaError]) -> None:
    assert by_reason[kind.reason] is kind


def test_no_two_classes_share_a_name_on_the_wire() -> None:
    assert len({kind.reason for kind in CLASSES}) == len(CLASSES) == len(by_reason)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_says_in_a_docstring_what_is_wrong(kind: type[TachikomaError]) -> None:
    assert kind.__doc__
    assert kind.__name__ in errors.__all__
    assert getattr(tachikoma, kind.__name__) is kind


def test_codes_are_those_the_design_promises() -> None:
    promised = {
        "Unauthenticated": "UNAUTHENTICATED",
        "PermissionDenied": "PERMISSION_DENIED",
        "ResourceExhausted": "RESOURCE_EXHAUSTED",
        "InvalidRequest": "INVALID_ARGUMENT",
        "NotFound": "NOT_FOUND",
        "AgentUnknown": "NOT_FOUND",
        "AgentOffline": "UNAVAILABLE",
        "AlreadyExists": "ALREADY_EXISTS",
    }
    assert {name: getattr(errors, name).code for name in promised} == promised


def test_an_offline_agent_is_caught_as_unavailable_and_an_unknown_one_as_not_found() -> None:
    with pytest.raises(Unavailable):
        raise AgentOffline("agent 'a' is offline")
    with pytest.raises(NotFound):
        raise AgentUnknown("there is no agent 'a'")


def test_facts_of_one_error_are_not_those_of_the_next() -> None:
    first = NotFound("first")
    first.metadata["rule"] = "x"
    assert NotFound("second").metadata == {}


def test_an_error_is_its_message() -> None:
    error = NotFound("no such execution", metadata={"id": "e"}, retry_after_seconds=2)
    assert str(error) == "no such execution"
    assert error.metadata == {"id": "e"}
    assert error.retry_after_seconds == 2
