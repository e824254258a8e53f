"""Run commands on many machines: by policy, at most once, with an audit trail.

from tachikoma import Client, ExecRequest

with Client() as client:
    response = client.execute(ExecRequest(agent_id="agent-1", command=["/usr/bin/uname", "-a"]))
    print(response.exit_code, response.stdout)

Names are imported on first use (PEP 562), so that importing a module of this package loads only what that module
needs: `import tachikoma.redis.keys` loads no gRPC.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# The fork support of gRPC is made for its synchronous API. With an open stream it crashed child processes before they
# could execute another program. gRPC reads this variable when it is loaded.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

if TYPE_CHECKING:
    from tachikoma.client.aio import AsyncClient
    from tachikoma.client.interactive import AsyncSession
    from tachikoma.client.profile import Profile
    from tachikoma.client.sync import Client, Session
    from tachikoma.errors import (
        AgentDraining,
        AgentOffline,
        AgentRevoked,
        AgentUnknown,
        AlreadyExists,
        ConfigurationError,
        ExecutionFailed,
        FailedPrecondition,
        InvalidRequest,
        NotFound,
        OutputAltered,
        PermissionDenied,
        RecordAltered,
        ResourceExhausted,
        ResultUnknown,
        ServerError,
        TachikomaError,
        Unauthenticated,
        Unavailable,
    )
    from tachikoma.sessions.frames import SignalName
    from tachikoma.vocabulary.agents import AgentInfo, AgentTrust, Enrolment, Revocation
    from tachikoma.vocabulary.audit import AuditCode, AuditedRequest, ExecAuditLog
    from tachikoma.vocabulary.batches import (
        ApprovalNeed,
        BatchApproval,
        BatchPreview,
        BatchRequest,
        BatchResult,
        BatchState,
        BatchStatus,
        BatchUpdate,
        HealthGate,
        PreviewedTarget,
        StopCause,
        TargetState,
    )
    from tachikoma.vocabulary.identifiers import new_id
    from tachikoma.vocabulary.isolation import Isolation, TmpScope
    from tachikoma.vocabulary.limits import OutputLimit, ResourceLimits, ResourceUsage, WhenFull
    from tachikoma.vocabulary.messages import OutputKind
    from tachikoma.vocabulary.policies import ExecPolicy, PolicyStatus, RateLimitConfig
    from tachikoma.vocabulary.recordings import RecordingInfo, RecordingMatch, RecordMode
    from tachikoma.vocabulary.requests import ExecRequest, Terminal, WindowSize
    from tachikoma.vocabulary.results import (
        Approval,
        CancelOutcome,
        CancelResponse,
        ExecOutput,
        ExecResponse,
        ExecStatus,
        ExecTransition,
        InputAccepted,
        IsolationReport,
        KillReceipt,
        OutputSummary,
    )
    from tachikoma.vocabulary.schedules import DueOutcome, Missed, Overlap, ScheduledRun, ScheduleStatus
    from tachikoma.vocabulary.states import ExecState
    from tachikoma.vocabulary.users import UserEnrolment, UserInfo

#: The module of each public name, grouped by what the names are for.
_MODULES = {
    # clients
    "AsyncClient": "client.aio",
    "Client": "client.sync",
    "Profile": "client.profile",
    # sessions
    "AsyncSession": "client.interactive",
    "Session": "client.sync",
    "Terminal": "vocabulary.requests",
    "WindowSize": "vocabulary.requests",
    "SignalName": "sessions.frames",
    "InputAccepted": "vocabulary.results",
    # requests and results
    "ExecRequest": "vocabulary.requests",
    "new_id": "vocabulary.identifiers",
    "ResourceLimits": "vocabulary.limits",
    "ResourceUsage": "vocabulary.limits",
    "Isolation": "vocabulary.isolation",
    "TmpScope": "vocabulary.isolation",
    "IsolationReport": "vocabulary.results",
    "ExecResponse": "vocabulary.results",
    "ExecOutput": "vocabulary.results",
    "OutputKind": "vocabulary.messages",
    "OutputSummary": "vocabulary.results",
    "KillReceipt": "vocabulary.results",
    "ExecState": "vocabulary.states",
    "ExecStatus": "vocabulary.results",
    "ExecTransition": "vocabulary.results",
    "CancelOutcome": "vocabulary.results",
    "CancelResponse": "vocabulary.results",
    "Approval": "vocabulary.results",
    # batches
    "BatchRequest": "vocabulary.batches",
    "BatchStatus": "vocabulary.batches",
    "BatchState": "vocabulary.batches",
    "BatchUpdate": "vocabulary.batches",
    "BatchResult": "vocabulary.batches",
    "ApprovalNeed": "vocabulary.batches",
    "HealthGate": "vocabulary.batches",
    "BatchApproval": "vocabulary.batches",
    "BatchPreview": "vocabulary.batches",
    "PreviewedTarget": "vocabulary.batches",
    "TargetState": "vocabulary.batches",
    "StopCause": "vocabulary.batches",
    # agents
    "AgentInfo": "vocabulary.agents",
    "AgentTrust": "vocabulary.agents",
    "Enrolment": "vocabulary.agents",
    "Revocation": "vocabulary.agents",
    # people
    "UserInfo": "vocabulary.users",
    "UserEnrolment": "vocabulary.users",
    # audit
    "AuditCode": "vocabulary.audit",
    "ExecAuditLog": "vocabulary.audit",
    "AuditedRequest": "vocabulary.audit",
    # schedules
    "ScheduleStatus": "vocabulary.schedules",
    "ScheduledRun": "vocabulary.schedules",
    "DueOutcome": "vocabulary.schedules",
    "Missed": "vocabulary.schedules",
    "Overlap": "vocabulary.schedules",
    # policy
    "ExecPolicy": "vocabulary.policies",
    "OutputLimit": "vocabulary.limits",
    "WhenFull": "vocabulary.limits",
    "PolicyStatus": "vocabulary.policies",
    "RateLimitConfig": "vocabulary.policies",
    "RecordMode": "vocabulary.recordings",
    "RecordingInfo": "vocabulary.recordings",
    "RecordingMatch": "vocabulary.recordings",
    # errors
    "TachikomaError": "errors",
    "ConfigurationError": "errors",
    "InvalidRequest": "errors",
    "Unauthenticated": "errors",
    "PermissionDenied": "errors",
    "NotFound": "errors",
    "AgentUnknown": "errors",
    "AlreadyExists": "errors",
    "FailedPrecondition": "errors",
    "ResourceExhausted": "errors",
    "ResultUnknown": "errors",
    "Unavailable": "errors",
    "AgentOffline": "errors",
    "AgentDraining": "errors",
    "AgentRevoked": "errors",
    "OutputAltered": "errors",
    "RecordAltered": "errors",
    "ServerError": "errors",
    "ExecutionFailed": "errors",
}

__all__ = [  # noqa: RUF022 (the same order as above)
    "AsyncClient",
    "Client",
    "Profile",
    "AsyncSession",
    "Session",
    "Terminal",
    "WindowSize",
    "SignalName",
    "InputAccepted",
    "ExecRequest",
    "new_id",
    "ResourceLimits",
    "ResourceUsage",
    "Isolation",
    "TmpScope",
    "IsolationReport",
    "ExecResponse",
    "ExecOutput",
    "OutputKind",
    "OutputSummary",
    "KillReceipt",
    "ExecState",
    "ExecStatus",
    "ExecTransition",
    "CancelOutcome",
    "CancelResponse",
    "Approval",
    "BatchRequest",
    "BatchStatus",
    "BatchState",
    "BatchUpdate",
    "BatchResult",
    "ApprovalNeed",
    "HealthGate",
    "BatchApproval",
    "BatchPreview",
    "PreviewedTarget",
    "TargetState",
    "StopCause",
    "AgentInfo",
    "AgentTrust",
    "Enrolment",
    "Revocation",
    "UserInfo",
    "UserEnrolment",
    "AuditCode",
    "ExecAuditLog",
    "AuditedRequest",
    "ScheduleStatus",
    "ScheduledRun",
    "DueOutcome",
    "Missed",
    "Overlap",
    "ExecPolicy",
    "OutputLimit",
    "WhenFull",
    "PolicyStatus",
    "RateLimitConfig",
    "RecordMode",
    "RecordingInfo",
    "RecordingMatch",
    "TachikomaError",
    "ConfigurationError",
    "InvalidRequest",
    "Unauthenticated",
    "PermissionDenied",
    "NotFound",
    "AgentUnknown",
    "AlreadyExists",
    "FailedPrecondition",
    "ResourceExhausted",
    "ResultUnknown",
    "Unavailable",
    "AgentOffline",
    "AgentDraining",
    "AgentRevoked",
    "OutputAltered",
    "RecordAltered",
    "ServerError",
    "ExecutionFailed",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
