"""Errors as gRPC statuses, in both directions."""

from __future__ import annotations

import math

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.client.rpc_errors import ERROR_DOMAIN, STATUS_DETAILS, error_from_rpc, error_to_details
from tachikoma.errors import (
    InvalidRequest,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ServerError,
    TachikomaError,
    Unauthenticated,
    Unavailable,
    by_reason,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


def sent(error: TachikomaError) -> TachikomaError:
    """The error as the client gets it."""
    return error_from_rpc(error.code, str(error), [(STATUS_DETAILS, error_to_details(error))])


@pytest.mark.parametrize("kind", by_reason.values(), ids=by_reason)
def test_an_error_arrives_as_its_own_class(kind: type[TachikomaError]) -> None:
    received = sent(kind("what, where and what to do"))
    assert type(received) is kind
    assert str(received) == "what, where and what to do"
    assert received.metadata == {}
    assert received.retry_after_seconds is None


@pytest.mark.parametrize("kind", by_reason.values(), ids=by_reason)
def test_facts_and_the_time_to_come_again_arrive(kind: type[TachikomaError]) -> None:
    received = sent(kind("later", metadata={"rule": "maxTimeout", "policy": "web@1"}, retry_after_seconds=1.25))
    assert type(received) is kind
    assert received.metadata == {"rule": "maxTimeout", "policy": "web@1"}
    assert received.retry_after_seconds == 1.25


@given(TEXT, st.dictionaries(TEXT, TEXT, max_size=3), st.none() | st.floats(0, 1e6))
def test_any_error_arrives(message: str, metadata: dict[str, str], retry: float | None) -> None:
    received = sent(ResourceExhausted(message, metadata=metadata, retry_after_seconds=retry))
    assert (type(received), str(received), received.metadata) == (ResourceExhausted, message, metadata)
    assert (received.retry_after_seconds is None) == (retry is None)
    if retry is not None:
        assert received.retry_after_seconds is not None
        assert math.isclose(received.retry_after_seconds, retry, abs_tol=1e-6)


def test_a_message_is_cut_before_it_breaks_a_header() -> None:
    details = error_to_details(NotFound("ä" * 100_000))
    assert len(details) < 8192
    assert str(error_from_rpc(NotFound.code, "", [(STATUS_DETAILS, details)])) == "ä" * 2000


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.UNAUTHENTICATED, Unauthenticated),
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.INTERNAL, ServerError),
        (grpc.StatusCode.UNIMPLEMENTED, ServerError),
        (grpc.StatusCode.PERMISSION_DENIED, ServerError),
    ],
)
def test_an_answer_of_grpc_itself_is_told_by_its_code(code: grpc.StatusCode, kind: type[TachikomaError]) -> None:
    received = error_from_rpc(code, "no route", [("server", "x"), ("trace-bin", b"\0")])
    assert type(received) is kind
    assert str(received) == f"no route ({code.name})"


def test_an_answer_without_words_is_told_by_the_name_of_its_code() -> None:
    assert str(error_from_rpc(grpc.StatusCode.UNKNOWN, "", [])) == "UNKNOWN (UNKNOWN)"


@pytest.mark.parametrize(
    "info",
    [
        ErrorInfo(reason="PERMISSION_DENIED", domain="somebody.else"),
        ErrorInfo(reason="NO_SUCH_REASON", domain=ERROR_DOMAIN),
        ErrorInfo(),
    ],
)
def test_details_of_somebody_else_are_not_taken_for_ours(info: ErrorInfo) -> None:
    status = Status(code=7, message="theirs")
    status.details.add().Pack(info)
    received = error_from_rpc(
        grpc.StatusCode.PERMISSION_DENIED, "denied", [(STATUS_DETAILS, status.SerializeToString())]
    )
    assert type(received) is ServerError
    assert str(received) == "denied (PERMISSION_DENIED)"


def test_a_detail_this_client_does_not_know_does_no_harm() -> None:
    status = Status.FromString(error_to_details(PermissionDenied("no", metadata={"rule": "r"})))
    status.details.insert(0, AnyMessage(type_url="type.googleapis.com/google.rpc.Novelty", value=b"\xff\xff"))
    received = error_from_rpc(PermissionDenied.code, "no", [(STATUS_DETAILS, status.SerializeToString())])
    assert type(received) is PermissionDenied
    assert received.metadata == {"rule": "r"}


def _status(*details: AnyMessage) -> bytes:
    return Status(code=14, message="x", details=details).SerializeToString()


@pytest.mark.parametrize(
    "details",
    [
        b"\xff",
        b"\x0a",
        _status(AnyMessage(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")),
        _status(AnyMessage(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff")),
    ],
    ids=["garbage", "cut short", "garbled info", "garbled retry"],
)
def test_unreadable_details_still_make_an_error_of_ours(details: bytes) -> None:
    received = error_from_rpc(grpc.StatusCode.UNAVAILABLE, "away", [(STATUS_DETAILS, details)])
    assert isinstance(received, Unavailable)


def test_a_time_to_come_again_beyond_all_bounds_still_makes_an_error_of_ours() -> None:
    status = Status.FromString(error_to_details(Unavailable("away")))
    status.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=2**63 - 1)))
    received = error_from_rpc(grpc.StatusCode.UNAVAILABLE, "away", [(STATUS_DETAILS, status.SerializeToString())])
    assert isinstance(received, Unavailable)
