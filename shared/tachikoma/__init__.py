"""Run commands on many machines: policy first, at most once, everything on the record.

from tachikoma import Client, ExecRequest

with Client() as client:
    response = client.execute(ExecRequest(agent_id="agent-1", command=["/usr/bin/uname", "-a"]))
    print(response.exit_code, response.stdout)
"""

import os

# What gRPC does in the child of a fork is made for its synchronous API; with a stream open it crashed children that
# were only to execute another program. It looks at this when it is loaded.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from tachikoma.client import AsyncClient, Client
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
    ServerError,
    TachikomaError,
    Unauthenticated,
    Unavailable,
)
from tachikoma.models import (
    AgentInfo,
    Approval,
    AuditCode,
    CancelOutcome,
    CancelResponse,
    Enrolment,
    ExecAuditLog,
    ExecOutput,
    ExecPolicy,
    ExecRequest,
    ExecResponse,
    ExecState,
    ExecStatus,
    ExecTransition,
    OutputKind,
    OutputSummary,
    PolicyStatus,
    RateLimitConfig,
    Revocation,
    new_id,
)
from tachikoma.profile import Profile

__all__ = [  # noqa: RUF022 (grouped by what they are for)
    # clients
    "AsyncClient",
    "Client",
    "Profile",
    # requests and what comes back
    "ExecRequest",
    "ExecResponse",
    "ExecOutput",
    "OutputKind",
    "OutputSummary",
    "ExecState",
    "ExecStatus",
    "ExecTransition",
    "CancelOutcome",
    "CancelResponse",
    "Approval",
    "AgentInfo",
    "Enrolment",
    "Revocation",
    "AuditCode",
    "ExecAuditLog",
    "new_id",
    # policy
    "ExecPolicy",
    "PolicyStatus",
    "RateLimitConfig",
    # errors
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
    "Unavailable",
    "AgentOffline",
    "AgentDraining",
    "AgentRevoked",
    "OutputAltered",
    "RecordAltered",
    "ServerError",
    "ExecutionFailed",
]
