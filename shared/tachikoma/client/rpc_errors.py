"""Errors as gRPC statuses with `google.rpc` details, in both directions."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from tachikoma.errors import InvalidRequest, ServerError, TachikomaError, Unauthenticated, Unavailable, by_reason

if TYPE_CHECKING:
    import grpc.aio

__all__ = ["ERROR_DOMAIN", "STATUS_DETAILS", "error_from_rpc", "error_to_details", "is_answer"]

#: The domain of `google.rpc.ErrorInfo`.
ERROR_DOMAIN = "tachikoma.exec.v1"
#: The trailing metadata in which gRPC keeps the rich status (grpc/status, all languages).
STATUS_DETAILS = "grpc-status-details-bin"
#: Longest message of an error on the wire, in characters. A header is limited in size, and people read no more.
MAX_MESSAGE_CHARACTERS = 2000

#: Classes of answers that gRPC itself gives, without details of this API; others are a ServerError.
_BY_CODE: dict[grpc.StatusCode, type[TachikomaError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
}


def error_to_details(error: TachikomaError) -> bytes:
    """Serialize an error as a `google.rpc.Status` with `ErrorInfo`, and `RetryInfo` where a retry may help."""
    status = Status(code=grpc.StatusCode[error.code].value[0], message=str(error)[:MAX_MESSAGE_CHARACTERS])
    status.details.add().Pack(ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=error.metadata))
    if error.retry_after_seconds is not None:
        retry = RetryInfo()
        retry.retry_delay.FromTimedelta(timedelta(seconds=error.retry_after_seconds))
        status.details.add().Pack(retry)
    return bytes(status.SerializeToString())


def is_answer(error: grpc.aio.AioRpcError) -> bool:
    """Return True if the server itself answered a call with this error; False if gRPC made it, or something between."""
    return any(key == STATUS_DETAILS for key, _ in error.trailing_metadata() or ())


def error_from_rpc(code: grpc.StatusCode, message: str, trailing: Iterable[tuple[str, str | bytes]]) -> TachikomaError:
    """Make the error of a failed call: the class that the server raised, if its details can be read.

    Args:
        code: the gRPC status code of the call.
        message: the status message, used when there are no details.
        trailing: the trailing metadata of the call.
    """
    for key, value in trailing:
        if key == STATUS_DETAILS and isinstance(value, bytes):
            # With unreadable details, the status of gRPC itself is used.
            with suppress(DecodeError, ValueError, OverflowError):
                found = _error_from_details(value)
                if found is not None:
                    return found
    return _BY_CODE.get(code, ServerError)(f"{message or code.name} ({code.name})")


def _error_from_details(value: bytes) -> TachikomaError | None:
    """Read the details of a status; return None if they are of another API, or of a class that is unknown here."""
    status = Status.FromString(value)
    info, retry = ErrorInfo(), RetryInfo()
    retry_after = None
    for detail in status.details:
        if detail.Is(RetryInfo.DESCRIPTOR):
            detail.Unpack(retry)
            retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        elif detail.Is(ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
    if info.domain != ERROR_DOMAIN or info.reason not in by_reason:
        return None
    return by_reason[info.reason](status.message, metadata=dict(info.metadata), retry_after_seconds=retry_after)
