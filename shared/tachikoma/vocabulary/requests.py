"""Requests to run a command, and their bounds."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError, field_validator

from tachikoma.errors import InvalidRequest
from tachikoma.vocabulary.field_comments import DocumentedFields
from tachikoma.vocabulary.isolation import Isolation
from tachikoma.vocabulary.limits import ResourceLimits
from tachikoma.vocabulary.model import OMITTED_IF_NONE, CallersModel, describe_validation_error
from tachikoma.vocabulary.types import Base64, Duration, Identifier, Timestamp

__all__ = [
    "DEFAULT_TIMEOUT",
    "MAX_ARGUMENTS",
    "MAX_COMMAND_BYTES",
    "MAX_ENVIRONMENT_BYTES",
    "MAX_ENVIRONMENT_ENTRIES",
    "MAX_MESSAGE_BYTES",
    "MAX_PATH_BYTES",
    "MAX_STDIN_BYTES",
    "MAX_TIMEOUT",
    "ExecRequest",
    "Terminal",
    "WindowSize",
    "encoded",
    "make_request",
    "new_id",
]

#: Largest number of elements of an argv.
MAX_ARGUMENTS = 1024

#: Largest number of bytes of an argv, each element counted with its closing NUL.
MAX_COMMAND_BYTES = 128 * 1024

#: Largest number of entries of an environment.
MAX_ENVIRONMENT_ENTRIES = 256

#: Largest number of bytes of an environment, each entry counted as NAME=value and NUL.
MAX_ENVIRONMENT_BYTES = 128 * 1024

#: Largest number of bytes of standard input in a request.
MAX_STDIN_BYTES = 4 * 1024 * 1024

#: Largest gRPC message in either direction: a request with its standard input, or a response with two streams of output
#: of up to 16 MiB each. Client and server must agree on it.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024

#: Largest number of bytes of the path of a working directory (PATH_MAX of Linux).
MAX_PATH_BYTES = 4096

#: Longest time that a command may run, and that a request may wait.
MAX_TIMEOUT = timedelta(days=7)

#: Longest run time of a command if neither its request nor its policy sets a shorter one.
DEFAULT_TIMEOUT = timedelta(hours=1)


def new_id() -> str:
    """Return a new execution id of 96 random bits, which cannot be guessed."""
    return secrets.token_hex(12)


def _no_nul(value: str, what: str) -> None:
    if "\0" in value:
        raise ValueError(f"{what} contains a NUL character, which cannot be passed to a program")


def encoded(value: str) -> bytes:
    """Return text as UTF-8, the encoding of arguments and names.

    Raises:
        ValueError: the text cannot be encoded.
    """
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{value[:80]!r} is not valid UTF-8") from None


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
        if not value[0]:
            raise ValueError("the first element, the program, is empty")
        for number, argument in enumerate(value):
            _no_nul(argument, f"element {number}")
        size = sum(len(encoded(argument)) + 1 for argument in value)
        if size > MAX_COMMAND_BYTES:
            raise ValueError(f"is {size} bytes; at most {MAX_COMMAND_BYTES} are allowed")
        return value

    @field_validator("environment")
    @classmethod
    def _environment_bounds(cls, value: dict[str, str]) -> dict[str, str]:
        size = 0
        for name, content in value.items():
            if not name or "=" in name:
                raise ValueError(f"{name[:80]!r} is not a variable name")
            _no_nul(name, "a name")
            _no_nul(content, f"the value of {name[:80]}")
            size += len(encoded(name)) + len(encoded(content)) + 2
        if size > MAX_ENVIRONMENT_BYTES:
            raise ValueError(f"is {size} bytes; at most {MAX_ENVIRONMENT_BYTES} are allowed")
        return value

    @field_validator("work_dir")
    @classmethod
    def _absolute(cls, value: str) -> str:
        _no_nul(value, "the path")
        if value and not value.startswith("/"):
            raise ValueError(f"{value[:80]!r} is not an absolute path")
        if len(encoded(value)) > MAX_PATH_BYTES:
            raise ValueError(f"is longer than {MAX_PATH_BYTES} bytes")
        return value

    @field_validator("user")
    @classmethod
    def _user_by_name(cls, value: str) -> str:
        # Names only, so that no number and no '#-1' reaches the lookup (CVE-2019-14287).
        if value and (len(value) > 32 or not (value[0].isascii() and (value[0].isalpha() or value[0] == "_"))):
            raise ValueError(f"{value[:80]!r} is not a user name; numeric ids are not accepted")
        if not all(c.isascii() and (c.isalnum() or c in "_.-$") for c in value):
            raise ValueError(f"{value[:80]!r} is not a user name")
        return value

    @field_validator("timeout")
    @classmethod
    def _positive(cls, value: timedelta | None) -> timedelta | None:
        if value is not None and value <= timedelta(0):
            raise ValueError("must be longer than zero")
        if value is not None and value > MAX_TIMEOUT:
            raise ValueError(f"must not be longer than {MAX_TIMEOUT.days} days")
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
