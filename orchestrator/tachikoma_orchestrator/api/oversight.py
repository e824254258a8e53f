"""The RPCs with which operators read the active policy and the audit trail."""

from __future__ import annotations

import re

from tachikoma.client import wire
from tachikoma.errors import InvalidRequest
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma_orchestrator.api.service import Service, page_size

__all__ = ["OversightCalls"]

_CURSOR = re.compile(r"([0-9]{1,20})(?:-([0-9]{1,20}))?")
#: Largest part that is used. Redis takes unsigned 64 bits, but refuses to begin after the very last id (XRANGE).
_LAST_PART = 2**63 - 1


class OversightCalls(Service):
    """`GetPolicyStatus` and `ListAuditEvents`."""

    async def GetPolicyStatus(self, request: pb.GetPolicyStatusRequest, context: object) -> pb.PolicyStatus:  # noqa: N802
        self._operator("read the status of the policy")
        return wire.policy_status_to_pb(self._parts.policies.status())

    async def ListAuditEvents(  # noqa: N802
        self, request: pb.ListAuditEventsRequest, context: object
    ) -> pb.ListAuditEventsResponse:
        self._operator("read the audit trail")
        for cursor in filter(None, (request.after, request.before)):
            if not _is_cursor(cursor):
                raise InvalidRequest(f"{cursor[:80]!r} is not a cursor of the audit trail")
        if request.after and request.before:
            raise InvalidRequest("a search of the audit trail has either `after` or `before`, not both")
        limit = page_size(request.limit, "limit")
        page = await self._parts.trail.read(after=request.after, before=request.before, limit=limit, exec_id=request.id)
        return pb.ListAuditEventsResponse(
            events=[wire.audit_to_pb(event) for event in page.events], further=page.further
        )


def _is_cursor(text: str) -> bool:
    """Return whether a text is the id of an entry of a stream that Redis takes as a beginning: ms, or ms-number."""
    found = _CURSOR.fullmatch(text)
    return found is not None and all(int(part) <= _LAST_PART for part in found.groups("0"))
