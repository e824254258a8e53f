"""The one tree of errors, on both sides of the API.

The server raises these; the gRPC layer turns each into its status code with `google.rpc` details, and the client
turns them back into the same class. So `except AgentOffline` means the same thing everywhere.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AgentDraining",
    "AgentOffline",
    "AgentRevoked",
    "AgentUnknown",
    "AlreadyExists",
    "ConfigurationError",
    "ExecutionFailed",
    "FailedPrecondition",
    "InvalidRequest",
    "NotFound",
    "OutputAltered",
    "PermissionDenied",
    "RecordAltered",
    "ResourceExhausted",
    "ServerError",
    "TachikomaError",
    "Unauthenticated",
    "Unavailable",
    "by_reason",
]


class TachikomaError(Exception):
    """Something went wrong in Tachikoma; the message says what, where and what to do.

    Attributes:
        metadata: facts for programs (`rule`, `policy`, …), as sent in `google.rpc.ErrorInfo`.
        retry_after_seconds: when a repetition may help, or None.
    """

    #: Stable name on the wire (`google.rpc.ErrorInfo.reason`).
    reason: ClassVar[str] = "UNKNOWN"
    #: Name of the gRPC status code that it travels as. A name, so that the vocabulary needs no gRPC.
    code: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        metadata: dict[str, str] | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.metadata = metadata or {}
        self.retry_after_seconds = retry_after_seconds


class ConfigurationError(TachikomaError):
    """A file or setting of this host is missing or wrong."""

    reason = "CONFIGURATION"
    code = "FAILED_PRECONDITION"


class InvalidRequest(TachikomaError):
    """The request itself is malformed; repeating it does not help."""

    reason = "INVALID_REQUEST"
    code = "INVALID_ARGUMENT"


class Unauthenticated(TachikomaError):
    """The peer did not show a SPIFFE identity that can be accepted."""

    reason = "UNAUTHENTICATED"
    code = "UNAUTHENTICATED"


class PermissionDenied(TachikomaError):
    """No policy grants the request; `metadata` names the rule that decided."""

    reason = "PERMISSION_DENIED"
    code = "PERMISSION_DENIED"


class NotFound(TachikomaError):
    """There is no such execution, or it belongs to somebody else."""

    reason = "NOT_FOUND"
    code = "NOT_FOUND"


class AgentUnknown(NotFound):
    """No agent of that name was ever heard of."""

    reason = "AGENT_UNKNOWN"


class AlreadyExists(TachikomaError):
    """The id was used before, for another request."""

    reason = "ALREADY_EXISTS"
    code = "ALREADY_EXISTS"


class FailedPrecondition(TachikomaError):
    """Things are no longer as the caller took them to be; the message says how they are."""

    reason = "FAILED_PRECONDITION"
    code = "FAILED_PRECONDITION"


class ResourceExhausted(TachikomaError):
    """A limit is reached; `retry_after_seconds` says when to come again."""

    reason = "RESOURCE_EXHAUSTED"
    code = "RESOURCE_EXHAUSTED"


class Unavailable(TachikomaError):
    """The service, or what it stands on, cannot be reached now."""

    reason = "UNAVAILABLE"
    code = "UNAVAILABLE"


class AgentOffline(Unavailable):
    """The agent is known but has not been heard of lately."""

    reason = "AGENT_OFFLINE"


class AgentDraining(Unavailable):
    """The agent takes no new executions until somebody resumes it."""

    reason = "AGENT_DRAINING"


class AgentRevoked(FailedPrecondition):
    """The agent was cut off, and takes nothing until it joins again."""

    reason = "AGENT_REVOKED"


class OutputAltered(TachikomaError):
    """The output that was read is not what the agent signed for; how the execution ended is not in doubt."""

    reason = "OUTPUT_ALTERED"
    code = "DATA_LOSS"


class RecordAltered(TachikomaError):
    """What the ledger says of an execution is not what was signed; what really became of it, its agent knows."""

    reason = "RECORD_ALTERED"
    code = "DATA_LOSS"


class ServerError(TachikomaError):
    """The service failed in a way nobody foresaw; its log has the details."""

    reason = "INTERNAL"
    code = "INTERNAL"


class ExecutionFailed(TachikomaError):
    """An execution ended otherwise than by exit code 0 (raised by `ExecResponse.check`, never sent)."""

    reason = "EXECUTION_FAILED"


def _tree(root: type[TachikomaError]) -> list[type[TachikomaError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


#: Every class of the tree by its name on the wire.
by_reason: dict[str, type[TachikomaError]] = {cls.reason: cls for cls in _tree(TachikomaError)}
