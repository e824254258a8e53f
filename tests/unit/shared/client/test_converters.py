"""Converters of single fields, and what an unset field means."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import assume, given
from hypothesis import strategies as st

from tachikoma.client.converters import (
    DURATION,
    HEX,
    HEX_LIST,
    MAP,
    TIMESTAMP,
    TUPLE,
    Presence,
    WireField,
    WireFormat,
    enumeration,
    many,
    nested,
)
from tachikoma.errors import ServerError
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.vocabulary.results import ExecTransition, OutputSummary
from tachikoma.vocabulary.states import ExecState

STATE = enumeration(ExecState, pb.ExecState.Value, "EXEC_STATE")
TRANSITION = WireFormat(ExecTransition, pb.ExecTransition, (WireField("state", STATE), WireField("time", TIMESTAMP)))
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@given(st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))])))
def test_a_time_is_the_same_moment_in_utc(moment: datetime) -> None:
    assume(0 < moment.year - 1 < 9998)
    found = TIMESTAMP.from_wire(TIMESTAMP.to_wire(moment))
    assert (found, found.tzinfo) == (moment, UTC)


@given(st.timedeltas(min_value=timedelta(days=-36_500), max_value=timedelta(days=36_500)))
def test_a_duration_keeps_its_microseconds(duration: timedelta) -> None:
    assert DURATION.from_wire(DURATION.to_wire(duration)) == duration


@given(st.lists(st.binary(max_size=40), max_size=4))
def test_digests_are_bytes_on_the_wire(digests: list[bytes]) -> None:
    text = tuple(digest.hex() for digest in digests)
    assert HEX_LIST.to_wire(text) == digests
    assert HEX_LIST.from_wire(digests) == text
    assert [HEX.from_wire(HEX.to_wire(digest)) for digest in text] == list(text)


def test_containers_of_protobuf_become_ordinary_ones() -> None:
    message = pb.ExecRequest(command=["a", "b"], environment={"A": "b"})
    command, environment = TUPLE.from_wire(message.command), MAP.from_wire(message.environment)
    message.Clear()
    assert (command, environment) == (("a", "b"), {"A": "b"})
    assert type(command) is tuple
    assert type(environment) is dict


@pytest.mark.parametrize("number", [0, 12, -1, 2**31 - 1])
def test_a_number_without_a_name_is_no_member(number: int) -> None:
    with pytest.raises(ValueError, match=f"^{number} is no ExecState$"):
        STATE.from_wire(number)  # type: ignore[arg-type]


def test_an_enum_that_the_api_does_not_have_is_found_when_its_table_is_made() -> None:
    class Other(StrEnum):
        NEW = "NEW"

    with pytest.raises(ValueError, match="EXEC_STATE_NEW"):
        enumeration(Other, pb.ExecState.Value, "EXEC_STATE")


def test_none_is_left_unset_and_unset_is_the_default() -> None:
    form = WireFormat(
        OutputSummary, pb.OutputSummary,
        (WireField("total_bytes"), WireField("sha256", HEX, Presence.NONZERO), WireField("truncated")),
    )  # fmt: skip
    message = form.to_pb(OutputSummary.model_construct(total_bytes=3, sha256="", truncated=None))
    assert message == pb.OutputSummary(total_bytes=3)
    assert form.read(message) == OutputSummary(total_bytes=3)


def test_attributes_that_a_message_does_not_carry_are_given() -> None:
    form = WireFormat(ExecTransition, pb.ExecTransition, (WireField("state", STATE),))
    message = pb.ExecTransition(state=pb.EXEC_STATE_LOST)
    assert form.read(message, time=NOON) == ExecTransition(state=ExecState.LOST, time=NOON)


def test_messages_inside_messages_are_converted() -> None:
    steps = (ExecTransition(state=ExecState.QUEUED, time=NOON), ExecTransition(state=ExecState.LOST, time=NOON))
    one, several = nested(TRANSITION), many(TRANSITION)
    assert one.from_wire(one.to_wire(steps[0])) == steps[0]
    assert several.from_wire(several.to_wire(steps)) == steps


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (pb.ExecTransition(), "0 is no ExecState"),
        (pb.ExecTransition(state=pb.EXEC_STATE_LOST, time=Timestamp(seconds=2**62)), "Timestamp"),
    ],
)
def test_a_message_that_cannot_be_read_is_an_error_of_the_server(message: pb.ExecTransition, why: str) -> None:
    with pytest.raises(ServerError, match=f"the server sent ExecTransition with values .* cannot read: .*{why}"):
        TRANSITION.from_pb(message)
    with pytest.raises((ValueError, OverflowError)):
        TRANSITION.read(message)


def test_a_duration_beyond_all_bounds_cannot_be_read() -> None:
    with pytest.raises((ValueError, OverflowError)):
        DURATION.from_wire(Duration(seconds=2**62))
