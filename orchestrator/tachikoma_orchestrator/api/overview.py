"""The RPC that lists executions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from tachikoma.client import wire
from tachikoma.errors import RecordAltered
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.vocabulary.results import ExecStatus
from tachikoma_orchestrator.api.guard import current_peer
from tachikoma_orchestrator.api.listing import ListFilter
from tachikoma_orchestrator.api.page_token import PageToken
from tachikoma_orchestrator.api.service import Service, page_size
from tachikoma_orchestrator.executions.record import Record

__all__ = ["OverviewCalls"]

log = structlog.get_logger(__name__)

#: Entries of one step through the index, and most steps for one `List`, whatever the size of its page.
STEP = 250
MAX_STEPS = 20


@dataclass(slots=True)
class _Page:
    """A page that is being filled."""

    size: int
    #: Position after the last execution that was looked at; None at the beginning, and after the end of the list.
    position: PageToken | None
    executions: list[ExecStatus] = field(default_factory=list)
    #: True after the last execution of the list.
    complete: bool = False

    @property
    def full(self) -> bool:
        return len(self.executions) == self.size


class OverviewCalls(Service):
    """`List`."""

    async def List(self, request: pb.ListRequest, context: object) -> pb.ListResponse:  # noqa: N802
        """List records as the ledger has them; verifying hundreds of signatures would be too slow for an overview.

        `Status`, `Execute` and `Attach` verify the record of one execution.
        """
        peer, wanted = current_peer(), ListFilter.from_pb(request)
        operator = self._is_operator(peer)

        def visible(record: Record) -> bool:
            return (operator or record.requested_by == str(peer)) and wanted.matches(
                record, self._parts.registry.labels
            )

        page = _Page(page_size(request.page_size, "page_size"), PageToken.parse(request.page_token) or wanted.start)
        # A caller who owns few of many executions gets short pages, so that no call searches for long.
        for _ in range(MAX_STEPS):
            await self._fill(page, wanted, visible)
            if page.full or page.complete:
                break
        return pb.ListResponse(
            executions=[wire.status_to_pb(status) for status in page.executions],
            next_page_token="" if page.position is None else str(page.position),
        )

    async def _fill(self, page: _Page, wanted: ListFilter, visible: Callable[[Record], bool]) -> None:
        """Take one step through the index, and add the visible executions to the page."""
        found = await self._parts.ledger.newest(
            wanted.agent,
            ended=wanted.ended,
            before=None if page.position is None else page.position.position,
            limit=STEP,
            since_ms=wanted.since_ms,
        )
        records = {record.exec_id: record for record in await self._parts.ledger.records([item for item, _ in found])}
        for exec_id, at_ms in found:
            page.position = PageToken.after(page.position, at_ms)
            record = records.get(exec_id)
            if record is None or not visible(record):
                continue
            try:
                page.executions.append(record.status())
            except RecordAltered as error:
                # One altered record must not hide the others.
                log.error("record.unreadable", id=exec_id, reason=str(error))
            if page.full:
                return
        if len(found) < STEP:
            page.position, page.complete = None, True
