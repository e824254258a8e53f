"""The rule of each RPC: the identities that may call it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

__all__ = ["RULES", "SERVICE", "Callers"]

#: The part of a method's name that all RPCs share.
SERVICE = "/tachikoma.exec.v1.RemoteExecution/"


class Callers(StrEnum):
    """The identities that may call an RPC."""

    #: Every identity, except agents. Policy or the list of operators decides further, inside the RPC.
    USERS = "users"
    #: Agents that are not revoked, each for itself.
    AGENTS = "agents"


#: The permitted callers of each RPC. The guard refuses every RPC that is not listed here.
RULES: Mapping[str, Callers] = {
    "Execute": Callers.USERS,
    "ExecuteStream": Callers.USERS,
    "ExecuteInteractive": Callers.USERS,
    "Submit": Callers.USERS,
    "Attach": Callers.USERS,
    "Cancel": Callers.USERS,
    "Status": Callers.USERS,
    "List": Callers.USERS,
    "ListApprovals": Callers.USERS,
    "GetApproval": Callers.USERS,
    "Approve": Callers.USERS,
    "Reject": Callers.USERS,
    "ListAgents": Callers.USERS,
    "DrainAgent": Callers.USERS,
    "ResumeAgent": Callers.USERS,
    "LabelAgent": Callers.USERS,
    "GetPolicyStatus": Callers.USERS,
    "ListAuditEvents": Callers.USERS,
    "ListRecordings": Callers.USERS,
    "ReadRecording": Callers.USERS,
    "ListSchedules": Callers.USERS,
    "NextDueTimes": Callers.USERS,
    "PauseSchedule": Callers.USERS,
    "ResumeSchedule": Callers.USERS,
    "RunSchedule": Callers.USERS,
    "ListScheduledRuns": Callers.USERS,
    "SubmitBatch": Callers.USERS,
    "PreviewBatch": Callers.USERS,
    "WatchBatch": Callers.USERS,
    "GetBatch": Callers.USERS,
    "ListBatches": Callers.USERS,
    "CancelBatch": Callers.USERS,
    "ListBatchApprovals": Callers.USERS,
    "GetBatchApproval": Callers.USERS,
    "ApproveBatch": Callers.USERS,
    "RejectBatch": Callers.USERS,
    "EnrollAgent": Callers.USERS,
    "RevokeAgent": Callers.USERS,
    "RenewAgent": Callers.AGENTS,
    "RenewIdentity": Callers.USERS,
    "EnrollUser": Callers.USERS,
    "ListUsers": Callers.USERS,
    "RevokeUser": Callers.USERS,
}
