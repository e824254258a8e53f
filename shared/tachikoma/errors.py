"""The errors of client and server, in one tree.

The server raises these. The gRPC layer sends each as its status code with `google.rpc` details, and the client raises
the same class again. So `except AgentOffline` means the same on both sides.
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
    "ResultUnknown",
    "ServerError",
    "TachikomaError",
    "Unauthenticated",
    "Unavailable",
    "by_reason",
]


class TachikomaError(Exception):
    """The base class of all errors; the message says what happened, to which object, and what to do next.

    Attributes:
        metadata: facts for programs (`rule`, `policy`, …), as sent in `google.rpc.ErrorInfo`.
        retry_after_seconds: delay after which a retry may succeed; None if a retry does not help.
    """

    #: Stable name on the wire (`google.rpc.ErrorInfo.reason`).
    reason: ClassVar[str] = "UNKNOWN"
    #: Name of its gRPC status code. A name, so that the vocabulary needs no gRPC.
    code: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        metadata: dict[str, str] | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        """Make an error.

        Args:
            message: for people; begins in lower case and has no final period.
            metadata: facts for programs.
            retry_after_seconds: delay after which a retry may succeed.
        """
        super().__init__(message)
        self.metadata = metadata or {}
        self.retry_after_seconds = retry_after_seconds


class ConfigurationError(TachikomaError):
    """A file, a setting or a package of this host is missing or wrong."""

    reason = "CONFIGURATION"
    code = "FAILED_PRECONDITION"


class InvalidRequest(TachikomaError):
    """The request is malformed; a retry does not help."""

    reason = "INVALID_REQUEST"
    code = "INVALID_ARGUMENT"


class Unauthenticated(TachikomaError):
    """The caller showed no valid SPIFFE identity."""

    reason = "UNAUTHENTICATED"
    code = "UNAUTHENTICATED"


class PermissionDenied(TachikomaError):
    """No policy grants the request; `metadata` names the rule that decided."""

    reason = "PERMISSION_DENIED"
    code = "PERMISSION_DENIED"


class NotFound(TachikomaError):
    """There is no such execution, or the caller may not see it."""

    reason = "NOT_FOUND"
    code = "NOT_FOUND"


class AgentUnknown(NotFound):
    """There is no agent with that id."""

    reason = "AGENT_UNKNOWN"


class AlreadyExists(TachikomaError):
    """The id was already used for another request."""

    reason = "ALREADY_EXISTS"
    code = "ALREADY_EXISTS"


class FailedPrecondition(TachikomaError):
    """The object is no longer in the state that the call needs; the message describes the current state."""

    reason = "FAILED_PRECONDITION"
    code = "FAILED_PRECONDITION"


class ResourceExhausted(TachikomaError):
    """A limit is reached; repeat the call after `retry_after_seconds`."""

    reason = "RESOURCE_EXHAUSTED"
    code = "RESOURCE_EXHAUSTED"


class Unavailable(TachikomaError):
    """The service, or a part that it needs, is unavailable.

    With `id` in its metadata, the request of that execution or batch may have arrived: it may run, or have run. The
    same request can be sent again, since an id runs at most once.
    """

    reason = "UNAVAILABLE"
    code = "UNAVAILABLE"


class AgentOffline(Unavailable):
    """The agent is known, but its lease has expired."""

    reason = "AGENT_OFFLINE"


class AgentDraining(Unavailable):
    """The agent is draining: it accepts no new executions until an operator resumes it."""

    reason = "AGENT_DRAINING"


class ResultUnknown(Unavailable):
    """The ledger lost the record of an execution that the caller waited for; whether it ran is unknown."""

    reason = "RESULT_UNKNOWN"


class AgentRevoked(FailedPrecondition):
    """The agent is revoked: it accepts no executions until it joins again."""

    reason = "AGENT_REVOKED"


class OutputAltered(TachikomaError):
    """The output differs from the output that the agent signed. The final state is still certain."""

    reason = "OUTPUT_ALTERED"
    code = "DATA_LOSS"


class RecordAltered(TachikomaError):
    """The ledger's record of an execution differs from the signed data. Its agent has the true result."""

    reason = "RECORD_ALTERED"
    code = "DATA_LOSS"


class ServerError(TachikomaError):
    """The service failed unexpectedly; its log has the details."""

    reason = "INTERNAL"
    code = "INTERNAL"


class ExecutionFailed(TachikomaError):
    """An execution that did not succeed (raised by `ExecResponse.check`, never sent)."""

    reason = "EXECUTION_FAILED"


def _tree(root: type[TachikomaError]) -> list[type[TachikomaError]]:
    """Return a class and all classes below it."""
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


#: Every class of the tree, by its name on the wire.
by_reason: dict[str, type[TachikomaError]] = {cls.reason: cls for cls in _tree(TachikomaError)}
