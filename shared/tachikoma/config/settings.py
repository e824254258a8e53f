"""Settings of a command: its options, and environment variables for options that are not given."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ValidationError
from pydantic_settings import BaseSettings, NoDecode

from tachikoma.errors import ConfigurationError
from tachikoma.vocabulary.addresses import HostPort
from tachikoma.vocabulary.model import describe_validation_error

__all__ = ["Address", "OptionalAddress", "read_settings"]

S = TypeVar("S", bound=BaseSettings)


def _address(value: object) -> object:
    return HostPort.parse(value) if isinstance(value, str) else value


def _optional_address(value: object) -> object:
    return None if value == "" else _address(value)


#: A setting `host:port`.
Address = Annotated[HostPort, NoDecode, BeforeValidator(_address)]
#: A setting `host:port`, or None, which is written as the empty text.
OptionalAddress = Annotated[HostPort | None, NoDecode, BeforeValidator(_optional_address)]


def read_settings(kind: type[S], what: str, **given: Any) -> S:
    """Read the settings of a command.

    Args:
        kind: class of the settings.
        what: name of the command or component, for messages.
        given: values of options; None for options that were not given.

    Raises:
        ConfigurationError: a setting is missing or wrong; the message names each.
    """
    try:
        return kind(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise ConfigurationError(f"{what} settings: {describe_validation_error(error)}") from None
