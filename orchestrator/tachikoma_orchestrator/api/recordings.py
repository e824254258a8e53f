"""The RPCs that find and return recordings of interactive executions."""

from __future__ import annotations

from collections.abc import AsyncIterator

from tachikoma.client import wire
from tachikoma.errors import FailedPrecondition, NotFound, Unavailable
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.identity.signed_messages import RecordingSeal
from tachikoma.policy.decision import may_play
from tachikoma.vocabulary.audit import AuditCode
from tachikoma_orchestrator.api.guard import current_peer
from tachikoma_orchestrator.api.listing import is_named
from tachikoma_orchestrator.api.service import Service, page_size
from tachikoma_orchestrator.api.times import milliseconds_of
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.recordings.library import Library, described
from tachikoma_orchestrator.recordings.store import StoreFailed

__all__ = ["RecordingCalls"]


class RecordingCalls(Service):
    """`ListRecordings` and `ReadRecording`."""

    async def ListRecordings(  # noqa: N802
        self, request: pb.ListRecordingsRequest, context: object
    ) -> pb.ListRecordingsResponse:
        library, peer = self._library(), current_peer()
        limit = page_size(request.limit, "limit")
        until_ms = milliseconds_of(request.until, "until") if request.HasField("until") else None
        found: list[pb.Recording] = []
        try:
            for seal in await library.newest():
                wanted = (
                    request.id in ("", seal.jti)
                    and request.agent_id in ("", seal.agent)
                    and is_named(seal.sub, request.requested_by)
                    and (until_ms is None or seal.began_ms < until_ms)
                )
                if not wanted or not await self._may_play(seal, peer):
                    continue
                matches = await library.search(seal, request.text) if request.text else ()
                if request.text and not matches:
                    continue
                found.append(wire.recording_to_pb(described(seal, matches)))
                if len(found) == limit:
                    break
        except StoreFailed as error:
            raise Unavailable(f"recordings cannot be read: {error}") from None
        return pb.ListRecordingsResponse(recordings=found)

    async def ReadRecording(  # noqa: N802
        self, request: pb.ReadRecordingRequest, context: object
    ) -> AsyncIterator[pb.RecordingPart]:
        library, peer = self._library(), current_peer()
        seal = await library.find(request.id)
        if seal is None or not await self._may_play(seal, peer):
            raise NotFound(f"there is no recording of {request.id[:80]!r} that you may play")
        await self._parts.trail.append(
            AuditCode.RECORDING_PLAYED, id=seal.jti, agent_id=seal.agent, requested_by=seal.sub, authorized="1",
            actor=str(peer), reason=f"from {peer.address or 'an unknown address'}", evidence_sha256=seal.sha256,
        )  # fmt: skip
        try:
            async for data in library.read(seal):
                yield pb.RecordingPart(data=data)
        except StoreFailed as error:
            raise Unavailable(f"the recording of {seal.jti} cannot be read: {error}") from None

    def _library(self) -> Library:
        if (library := self._parts.recordings.library) is None:
            raise FailedPrecondition("this orchestrator has no folder for recordings; set TACHIKOMA_RECORDINGS")
        return library

    async def _may_play(self, seal: RecordingSeal, peer: Peer) -> bool:
        """Return True if a caller may play a recording: operators, its requester, and players that policy names.

        Policy decides again on the recorded request, so that it can take the right away later.
        """
        if seal.sub == str(peer) or self._is_operator(peer):
            return True
        request = seal.request.as_request(seal.agent, id=seal.jti, requested_by=seal.sub)
        decision = await self._parts.admitter.decide(request, peer.address, granted_by=seal.policy)
        return decision.allowed and may_play(decision.players, str(peer))
