"""The output stream of the library, whose messages are `ExecOutput`."""

from __future__ import annotations

from tachikoma.client import wire
from tachikoma.client.streams import OutputStream
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.results import ExecOutput

__all__ = ["ModelStream"]


class ModelStream(OutputStream[ExecOutput]):
    """An output stream of `ExecOutput`."""

    def _message(self, received: pb.ExecOutput) -> ExecOutput:
        return wire.output_from_pb(received)

    def _gap(self, exec_id: str, seq: int, missing_bytes: int) -> ExecOutput:
        return ExecOutput(id=exec_id, kind=OutputKind.GAP, seq=seq, missing_bytes=missing_bytes)
