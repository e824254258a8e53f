"""Requests to run a command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError, field_validator

from tachikoma.errors import InvalidRequest
from tachikoma.vocabulary.field_comments import DocumentedFields
from tachikoma.vocabulary.identifiers import new_id
from tachikoma.vocabulary.isolation import Isolation
from tachikoma.vocabulary.limits import ResourceLimits
from tachikoma.vocabulary.model import OMITTED_IF_NONE, CallersModel, describe_validation_error
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
from tachikoma.vocabulary.types import Base64, Duration, Identifier, Timestamp

__all__ = [
    "ExecRequest",
    "Terminal",
    "WindowSize",
    "make_request",
]

#: A number of rows, columns or pixels; the kernel stores 16 bits of it (ioctl_tty(2), TIOCSWINSZ).
_Cells = Annotated[int, Field(ge=0, le=0xFFFF)]


@dataclass(frozen=True, slots=True)
class WindowSize:
    """The size of a terminal's window."""

    rows: int
    columns: int
    #: Width in pixels; 0 if it is unknown.
    x_pixels: int = 0
    #: Height in pixels; 0 if it is unknown.
    y_pixels: int = 0


WindowSize.__doc__ = DocumentedFields.of(WindowSize)


class Terminal(CallersModel):
    """The terminal of a request."""

    #: Value of TERM: a name of terminfo(5).
    type: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9+._-]*$")] = "xterm-256color"
    #: Number of rows; 0 if it is unknown.
    rows: _Cells = 24
    #: Number of columns; 0 if it is unknown.
    columns: _Cells = 80
    #: Width in pixels; 0 if it is unknown.
    x_pixels: _Cells = 0
    #: Height in pixels; 0 if it is unknown.
    y_pixels: _Cells = 0

    @property
    def size(self) -> WindowSize:
        """Return the size alone."""
        return WindowSize(self.rows, self.columns, self.x_pixels, self.y_pixels)


class ExecRequest(CallersModel):
    """A request to run an argv on an agent (Spec 534, ExecRequest).

    Raises:
        InvalidRequest: a field is out of its bounds; the message names each.
    """

    #: Idempotency key: the same id with the same request returns the same execution. Default: a random id.
    id: Identifier = Field(default_factory=new_id)
    #: Id of the agent that runs the command.
    agent_id: Identifier
    #: The argv. No shell interprets it. A bare program name is looked up in the fixed search path of the orchestrator.
    command: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_ARGUMENTS)]
    #: Absolute path of the working directory; empty for the user's home.
    work_dir: str = ""
    #: Environment variables beside those that the agent sets. Policy must grant each name.
    environment: Annotated[dict[str, str], Field(max_length=MAX_ENVIRONMENT_ENTRIES)] = Field(default_factory=dict)
    #: Bytes that the command reads from standard input.
    stdin: Annotated[Base64, Field(max_length=MAX_STDIN_BYTES)] = b""
    #: Longest run time; then the command is killed. None: the longest that policy allows, at most an hour. For an
    #: interactive request, it is the policy's duration for such requests, if it has one.
    timeout: Duration | None = None
    #: Name of the user on the agent; empty for the agent's default user.
    user: str = ""
    #: Resource limits below those that policy sets; they never raise them. None: those of policy.
    limits: ResourceLimits | None = None
    #: True if input follows while the command runs. Then `stdin` is empty.
    interactive: bool = False
    #: True if the command gets a terminal. Needs `interactive`.
    tty: bool = False
    #: Type and size of the terminal. None: the defaults, if the command gets one.
    terminal: Annotated[Terminal | None, OMITTED_IF_NONE] = None
    #: Isolation that the command needs; it never lowers that of policy and agent. None: theirs.
    isolation: Annotated[Isolation | None, OMITTED_IF_NONE] = None
    #: SPIFFE ID of the requester. The server sets it; a caller leaves it empty or gives its own ID.
    requested_by: Annotated[str, Field(max_length=2048)] = ""
    #: Time at which the requester made the request.
    request_time: Timestamp = Field(default_factory=lambda: datetime.now(UTC))

    if TYPE_CHECKING:
        # The types that callers may write.
        def __init__(
            self,
            *,
            agent_id: str,
            command: Sequence[str],
            id: str = ...,
            work_dir: str = "",
            environment: Mapping[str, str] = ...,
            stdin: bytes | bytearray | memoryview = b"",
            timeout: timedelta | str | float | None = None,
            user: str = "",
            limits: ResourceLimits | None = None,
            interactive: bool = False,
            tty: bool = False,
            terminal: Terminal | None = None,
            isolation: Isolation | str | None = None,
            requested_by: str = "",
            request_time: datetime = ...,
        ) -> None: ...

    @field_validator("command", mode="before")
    @classmethod
    def _not_one_string(cls, value: Any) -> Any:
        if isinstance(value, (str, bytes)):
            raise ValueError("must be a list of arguments, not one string; use shlex.split() to split a command line")
        return value

    @field_validator("command")
    @classmethod
    def _command_bounds(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_command(value)
        return value

    @field_validator("environment")
    @classmethod
    def _environment_bounds(cls, value: dict[str, str]) -> dict[str, str]:
        check_environment(value)
        return value

    @field_validator("work_dir")
    @classmethod
    def _absolute(cls, value: str) -> str:
        check_work_dir(value)
        return value

    @field_validator("user")
    @classmethod
    def _user_by_name(cls, value: str) -> str:
        check_user(value)
        return value

    @field_validator("timeout")
    @classmethod
    def _positive(cls, value: timedelta | None) -> timedelta | None:
        if value is not None:
            check_timeout(value)
        return value


def make_request(values: dict[str, Any]) -> ExecRequest:
    """Build a request from untrusted values.

    Raises:
        InvalidRequest: a field is out of its bounds; the message names each.
    """
    try:
        return ExecRequest.model_validate(values)
    except ValidationError as error:
        raise InvalidRequest(f"invalid request: {describe_validation_error(error)}") from None
