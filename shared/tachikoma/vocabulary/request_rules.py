"""The bounds of a request, for the model and for a short command that has no time to load it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

__all__ = [
    "DEFAULT_TIMEOUT",
    "MAX_ARGUMENTS",
    "MAX_COMMAND_BYTES",
    "MAX_ENVIRONMENT_BYTES",
    "MAX_ENVIRONMENT_ENTRIES",
    "MAX_PATH_BYTES",
    "MAX_STDIN_BYTES",
    "MAX_TIMEOUT",
    "check_command",
    "check_environment",
    "check_timeout",
    "check_user",
    "check_work_dir",
    "encoded",
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

#: Largest number of bytes of the path of a working directory (PATH_MAX of Linux).
MAX_PATH_BYTES = 4096

#: Longest time that a command may run, and that a request may wait.
MAX_TIMEOUT = timedelta(days=7)

#: Longest run time of a command if neither its request nor its policy sets a shorter one.
DEFAULT_TIMEOUT = timedelta(hours=1)


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


def check_command(value: tuple[str, ...]) -> None:
    """Check that an argv, which has an element, can be run.

    Raises:
        ValueError: it is not; the message says why.
    """
    if not value[0]:
        raise ValueError("the first element, the program, is empty")
    for number, argument in enumerate(value):
        _no_nul(argument, f"element {number}")
    size = sum(len(encoded(argument)) + 1 for argument in value)
    if size > MAX_COMMAND_BYTES:
        raise ValueError(f"is {size} bytes; at most {MAX_COMMAND_BYTES} are allowed")


def check_environment(value: Mapping[str, str]) -> None:
    """Check that an environment can be given to a program.

    Raises:
        ValueError: it is not; the message says why.
    """
    size = 0
    for name, content in value.items():
        if not name or "=" in name:
            raise ValueError(f"{name[:80]!r} is not a variable name")
        _no_nul(name, "a name")
        _no_nul(content, f"the value of {name[:80]}")
        size += len(encoded(name)) + len(encoded(content)) + 2
    if size > MAX_ENVIRONMENT_BYTES:
        raise ValueError(f"is {size} bytes; at most {MAX_ENVIRONMENT_BYTES} are allowed")


def check_work_dir(value: str) -> None:
    """Check that text is empty or an absolute path.

    Raises:
        ValueError: it is not; the message says why.
    """
    _no_nul(value, "the path")
    if value and not value.startswith("/"):
        raise ValueError(f"{value[:80]!r} is not an absolute path")
    if len(encoded(value)) > MAX_PATH_BYTES:
        raise ValueError(f"is longer than {MAX_PATH_BYTES} bytes")


def check_user(value: str) -> None:
    """Check that text is empty or the name of a user.

    Raises:
        ValueError: it is not; the message says why.
    """
    # Names only, so that no number and no '#-1' reaches the lookup (CVE-2019-14287).
    if value and (len(value) > 32 or not (value[0].isascii() and (value[0].isalpha() or value[0] == "_"))):
        raise ValueError(f"{value[:80]!r} is not a user name; numeric ids are not accepted")
    if not all(c.isascii() and (c.isalnum() or c in "_.-$") for c in value):
        raise ValueError(f"{value[:80]!r} is not a user name")


def check_timeout(value: timedelta) -> None:
    """Check that a command may run for a time.

    Raises:
        ValueError: it is not; the message says why.
    """
    if value <= timedelta(0):
        raise ValueError("must be longer than zero")
    if value > MAX_TIMEOUT:
        raise ValueError(f"must not be longer than {MAX_TIMEOUT.days} days")
