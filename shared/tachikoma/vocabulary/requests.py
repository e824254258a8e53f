"""Requests to run a command, and their bounds."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from tachikoma.errors import InvalidRequest
from tachikoma.vocabulary.limits import ResourceLimits
from tachikoma.vocabulary.model import Model, describe_validation_error
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
    "encoded",
    "make_request",
    "new_id",
]

#: Elements of an argv.
MAX_ARGUMENTS = 1024

#: Bytes of an argv, each element counted with its closing NUL.
MAX_COMMAND_BYTES = 128 * 1024

#: Entries of an environment.
MAX_ENVIRONMENT_ENTRIES = 256

#: Bytes of an environment, each entry counted as NAME=value and NUL.
MAX_ENVIRONMENT_BYTES = 128 * 1024

#: Bytes of standard input sent with a request.
MAX_STDIN_BYTES = 4 * 1024 * 1024

#: Largest gRPC message in either direction: a request with its standard input, or a response with two streams of output
#: of up to 16 MiB each. Client and server must agree on it.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024

#: Longest path of a working directory (PATH_MAX of Linux).
MAX_PATH_BYTES = 4096

#: Longest time a command may run, and a request may wait.
MAX_TIMEOUT = timedelta(days=7)

#: How long a command may run when neither its request nor its policy says less.
DEFAULT_TIMEOUT = timedelta(hours=1)


def new_id() -> str:
    """A fresh execution id: 96 random bits, so that nobody can guess another's."""
    return secrets.token_hex(12)


def _no_nul(value: str, what: str) -> None:
    if "\0" in value:
        raise ValueError(f"{what} contains a NUL character, which no program can be given")


def encoded(value: str) -> bytes:
    """Text as the kernel gets it.

    Raises:
        ValueError: it cannot be UTF-8, which is what names and arguments travel as.
    """
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{value[:80]!r} is not valid UTF-8") from None


class ExecRequest(Model):
    """A request to run an argv on an agent (Spec 534, ExecRequest).

    Raises:
        pydantic.ValidationError: a bound is broken; `describe_validation_error` puts it into words.
    """

    #: Idempotency key: the same id with the same request is the same execution.
    id: Identifier = Field(default_factory=new_id)
    #: The agent to run on.
    agent_id: Identifier
    #: The argv. No shell looks at it. A bare name is looked up in the agent's fixed search path.
    command: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_ARGUMENTS)]
    #: Absolute working directory; empty is the user's home.
    work_dir: str = ""
    #: Variables beside those the agent sets; each must be granted by policy.
    environment: Annotated[dict[str, str], Field(max_length=MAX_ENVIRONMENT_ENTRIES)] = Field(default_factory=dict)
    #: What the command reads from standard input.
    stdin: Annotated[Base64, Field(max_length=MAX_STDIN_BYTES)] = b""
    #: How long the command may run before it is killed. None: as long as its policy allows, at most an hour.
    timeout: Duration | None = None
    #: User name on the agent; empty is the agent's default user.
    user: str = ""
    #: Lowers the limits that policy sets; never raises them.
    limits: ResourceLimits | None = None
    #: Whether input follows while the command runs.
    interactive: bool = False
    #: Whether the command gets a terminal.
    tty: bool = False
    #: SPIFFE ID of the requester. The server sets it; a caller may leave it empty or name itself.
    requested_by: Annotated[str, Field(max_length=2048)] = ""
    #: When the requester made the request.
    request_time: Timestamp = Field(default_factory=lambda: datetime.now(UTC))

    @field_validator("command", mode="before")
    @classmethod
    def _not_one_string(cls, value: Any) -> Any:
        if isinstance(value, (str, bytes)):
            raise ValueError("is a list of arguments, not one string; use shlex.split() if you have a command line")
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
                raise ValueError(f"{name[:80]!r} is no variable name")
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
        # By name only, so that no number and no '#-1' reaches the lookup (CVE-2019-14287).
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
        InvalidRequest: a bound is broken; the message names each field.
    """
    try:
        return ExecRequest(**values)
    except ValidationError as error:
        raise InvalidRequest(f"invalid request: {describe_validation_error(error)}") from None
