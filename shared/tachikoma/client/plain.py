"""A client that runs one command, without the models of the library, whose import would take most of its time.

`tachikoma exec` uses it for a command whose output goes to the terminal. It shares the connection, the attempts and the
checks of the output with `AsyncClient`; only the form of requests and messages differs.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tachikoma.client.connection import Connection
from tachikoma.client.profile import Profile
from tachikoma.client.retry import DEFAULT_RECONNECT, Attempts, Calls
from tachikoma.client.streams import OutputStream
from tachikoma.errors import ServerError
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.vocabulary.identifiers import is_identifier, new_id
from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.request_rules import (
    MAX_ARGUMENTS,
    MAX_ENVIRONMENT_ENTRIES,
    MAX_STDIN_BYTES,
    check_command,
    check_environment,
    check_timeout,
    check_user,
    check_work_dir,
)
from tachikoma.vocabulary.states import ExecState

__all__ = ["PlainClient", "PlainMessage", "PlainRequest", "PlainResult", "PlainStatus", "PlainSummary"]

#: The beginning of the names of states in protobuf.
_STATE_PREFIX = "EXEC_STATE_"


@dataclass(frozen=True, slots=True)
class PlainRequest:
    """A request with the fields that most commands need; `ExecRequest` has all of them and says what they mean."""

    agent_id: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    timeout: timedelta | None = None
    work_dir: str = ""
    user: str = ""
    stdin: bytes = b""
    #: None for a random one.
    id: str | None = None

    def message(self) -> pb.ExecRequest | None:
        """Return the message to the server; None if a field is out of its bounds, which `ExecRequest` reports."""
        identified = is_identifier(self.agent_id) and (self.id is None or is_identifier(self.id))
        sized = 1 <= len(self.command) <= MAX_ARGUMENTS and len(self.environment) <= MAX_ENVIRONMENT_ENTRIES
        if not identified or not sized or len(self.stdin) > MAX_STDIN_BYTES:
            return None
        try:
            check_command(self.command)
            check_environment(self.environment)
            check_work_dir(self.work_dir)
            check_user(self.user)
            if self.timeout is not None:
                check_timeout(self.timeout)
        except ValueError:
            return None
        message = pb.ExecRequest(
            id=self.id or new_id(), agent_id=self.agent_id, command=self.command, environment=self.environment,
            work_dir=self.work_dir, user=self.user, stdin=self.stdin,
        )  # fmt: skip
        message.request_time.FromDatetime(datetime.now(UTC))
        if self.timeout is not None:
            message.timeout.FromTimedelta(self.timeout)
        return message


@dataclass(frozen=True, slots=True)
class PlainSummary:
    """See `vocabulary.messages.Summary`."""

    total_bytes: int
    sha256: str

    @classmethod
    def read(cls, message: pb.OutputSummary) -> PlainSummary:
        """Read what a server sent."""
        return cls(message.total_bytes, message.sha256.hex())


@dataclass(frozen=True, slots=True)
class PlainResult:
    """See `vocabulary.messages.Result`."""

    id: str
    agent_id: str
    state: ExecState
    exit_code: int
    error: str
    stdout_summary: PlainSummary
    stderr_summary: PlainSummary

    @classmethod
    def read(cls, message: pb.ExecResponse) -> PlainResult:
        """Read what a server sent. Raises ValueError for an unknown state."""
        return cls(
            message.id, message.agent_id, _state(message.state), message.exit_code, message.error,
            PlainSummary.read(message.stdout_summary), PlainSummary.read(message.stderr_summary),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class PlainStatus:
    """See `vocabulary.messages.Status`."""

    id: str
    state: ExecState
    deadline: datetime | None
    approvers: tuple[str, ...]
    approved_by: str
    approval_reason: str
    observers: tuple[str, ...]

    @classmethod
    def read(cls, message: pb.ExecStatus) -> PlainStatus:
        """Read what a server sent. Raises ValueError or OverflowError for a value that cannot be read."""
        return cls(
            message.id, _state(message.state),
            message.deadline.ToDatetime(tzinfo=UTC) if message.HasField("deadline") else None,
            tuple(message.approvers), message.approved_by, message.approval_reason, tuple(message.observers),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class PlainMessage:
    """See `vocabulary.messages.Message`."""

    id: str
    kind: OutputKind
    seq: int
    offset: int = 0
    data: bytes = b""
    missing_bytes: int = 0
    status: PlainStatus | None = None
    result: PlainResult | None = None

    @classmethod
    def read(cls, message: pb.ExecOutput) -> PlainMessage:
        """Read what a server sent.

        Raises:
            ServerError: its kind or a value is unknown to this client.
        """
        match message.WhichOneof("event"):
            case "stdout" | "stderr" | "screen" as name:
                return cls(message.id, OutputKind(name), message.seq, message.offset, data=getattr(message, name))
            case "gap":
                missing = message.gap.missing_bytes
                return cls(message.id, OutputKind.GAP, message.seq, message.offset, missing_bytes=missing)
            case "accepted":
                return cls(message.id, OutputKind.ACCEPTED, message.seq, message.offset)
            case None:
                raise ServerError("the server sent an output message of a kind this client does not know; update it")
        try:
            if message.HasField("status"):
                status = PlainStatus.read(message.status)
                return cls(message.id, OutputKind.STATUS, message.seq, message.offset, status=status)
            result = PlainResult.read(message.result)
            return cls(message.id, OutputKind.RESULT, message.seq, message.offset, result=result)
        except (ValueError, OverflowError) as error:
            raise ServerError(f"the server sent an output message that this client cannot read: {error}") from None


def _state(number: pb.ExecState.ValueType) -> ExecState:
    """Return the state of a number in protobuf. Raises ValueError if it is none."""
    return ExecState(pb.ExecState.Name(number).removeprefix(_STATE_PREFIX))


class _PlainStream(OutputStream[PlainMessage]):
    """An output stream of `PlainMessage`."""

    def _message(self, received: pb.ExecOutput) -> PlainMessage:
        return PlainMessage.read(received)

    def _gap(self, exec_id: str, seq: int, missing_bytes: int) -> PlainMessage:
        return PlainMessage(exec_id, OutputKind.GAP, seq, missing_bytes=missing_bytes)


class PlainClient(Calls):
    """Runs one command. An async context manager; errors are those of `AsyncClient`."""

    def __init__(self) -> None:
        """Prepare a client with the user's own profile; nothing is connected yet.

        Raises:
            ConfigurationError: there is no profile, or its identity cannot be read.
            Unauthenticated: the identity is expired or not trusted by its own bundle.
        """
        self._patience, self._reconnect = timedelta(0), DEFAULT_RECONNECT
        self._connection = Connection(Profile.load())

    async def __aenter__(self) -> PlainClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()

    async def execute_stream(self, request: pb.ExecRequest) -> AsyncGenerator[PlainMessage]:
        """Run a command and yield its output; as `AsyncClient.execute_stream` with `detach`."""
        attempts = Attempts(self._patience, self._reconnect, request.id)
        stream = _PlainStream(self._connection, attempts, lambda stub: stub.ExecuteStream(request))
        async with aclosing(stream.read()) as messages:
            async for message in messages:
                yield message

    async def cancel(self, exec_id: str) -> None:
        """Cancel an execution. Safe to repeat."""
        await self._call(lambda stub: stub.Cancel(pb.CancelRequest(id=exec_id)))
