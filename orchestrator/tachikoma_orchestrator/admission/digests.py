"""Digests that name what would run: of a request, for its repetition; of a request as granted, for its approval.

Digests are stored in Redis and compared later, possibly by a newer version. A change of their content makes open
approvals void and turns repetitions of older requests into conflicts.
"""

from __future__ import annotations

import hashlib
import json

from tachikoma.policy.decision import Decision
from tachikoma.vocabulary.requests import ExecRequest

__all__ = ["approval_digest", "request_digest"]


def request_digest(request: ExecRequest) -> str:
    """Return the SHA-256 over everything that would run and over the requester, in hexadecimal.

    The id and the time of the request are left out.
    """
    return _sha256(
        {
            "agent": request.agent_id,
            "command": request.command,
            "workDir": request.work_dir,
            "environment": request.environment,
            "stdin": hashlib.sha256(request.stdin).hexdigest(),
            "timeout": request.timeout.total_seconds() if request.timeout else None,
            "user": request.user,
            "interactive": request.interactive,
            "tty": request.tty,
            "limits": request.limits.to_dict() if request.limits else None,
            "requestedBy": request.requested_by,
            # Requests without a terminal keep the digest that they had before terminals were possible.
            **({"terminal": request.terminal.to_dict()} if request.terminal else {}),
            **({"isolation": request.isolation} if request.isolation else {}),
        }
    )


def approval_digest(request: ExecRequest, decision: Decision) -> str:
    """Return the SHA-256 over a request, its id and what policy grants it, in hexadecimal.

    Args:
        request: the request.
        decision: the decision that allows it.
    """
    assert decision.grant is not None
    return _sha256(
        {
            "id": request.id,
            "request": request_digest(request),
            "policy": decision.policy,
            "grant": decision.grant.model_dump(mode="json"),
            "timeout": decision.timeout.total_seconds(),
            **({"hostAccess": True} if decision.host_access else {}),
        }
    )


def _sha256(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
