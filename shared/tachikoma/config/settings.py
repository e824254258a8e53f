"""Settings of a part: its options, environment variables, and a settings file, in this order."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_origin

from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from tachikoma.errors import ConfigurationError
from tachikoma.vocabulary.addresses import HostPort, HostPorts
from tachikoma.vocabulary.pairs import parse_pairs

__all__ = [
    "SETTINGS_VARIABLE",
    "Address",
    "OptionalAddress",
    "OptionalAddresses",
    "Origin",
    "PartSettings",
    "given_values",
    "origins",
    "read_settings",
    "setting_key",
    "variable",
]

#: Environment variable with the path of the settings file.
SETTINGS_VARIABLE = "TACHIKOMA_SETTINGS"
#: Beginning of every variable of a setting.
PREFIX = "TACHIKOMA_"
#: Largest number of bytes of a settings file.
MAX_FILE_BYTES = 1024 * 1024
#: Begins of names that every part's file may contain, besides the part's own.
_COMMON = ("sentry_",)
#: Options that are given once for each entry of a setting.
_SINGULAR = {"labels": "label", "capabilities": "capability"}

S = TypeVar("S", bound="PartSettings")


def _address(value: object) -> object:
    return HostPort.parse(value) if isinstance(value, str) else value


def _optional_address(value: object) -> object:
    return None if value == "" else _address(value)


def _optional_addresses(value: object) -> object:
    return HostPorts.parse(value) if isinstance(value, str) and value else value or None


#: A setting `host:port`.
Address = Annotated[HostPort, NoDecode, BeforeValidator(_address)]
#: A setting `host:port`, or None, which is written as the empty text.
OptionalAddress = Annotated[HostPort | None, NoDecode, BeforeValidator(_optional_address)]
#: The same for several addresses with commas.
OptionalAddresses = Annotated[HostPorts | None, NoDecode, BeforeValidator(_optional_addresses)]


class _Environment(EnvSettingsSource):
    """Environment variables; lists are written `a,b`, mappings `name=value,other=value`, and both also as JSON."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """Read a list or a mapping.

        Raises:
            ValueError: the text is neither; the message names the variable.
        """
        if NoDecode in field.metadata:
            return value
        text = value.strip()
        try:
            if text.startswith(("[", "{")):
                return json.loads(text)
            entries = [entry.strip() for entry in text.split(",") if entry.strip()]
            return parse_pairs(entries) if _is_mapping(field) else entries
        except ValueError as error:
            raise ValueError(f"{variable(self.settings_cls, field_name)}: {error}") from None


def _is_mapping(field: FieldInfo) -> bool:
    kind = field.annotation
    return get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, BaseModel))


class PartSettings(BaseSettings):
    """Base of the settings of each part of the system."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources of values, the strongest first: options, environment, settings file."""
        content = _read_file()
        from_file = {
            field: content[key]
            for field in settings_cls.model_fields
            if (key := setting_key(settings_cls, field)) in content
        }
        return init_settings, _Environment(settings_cls), InitSettingsSource(settings_cls, from_file)


class Origin(StrEnum):
    """The sources of the value of a setting."""

    OPTION = "option"
    ENVIRONMENT = "environment"
    FILE = "file"
    DEFAULT = "default"
    #: The setting is required, and given nowhere.
    MISSING = "missing"


def variable(kind: type[BaseSettings], field: str) -> str:
    """Return the environment variable of a setting."""
    return f"{kind.model_config.get('env_prefix') or PREFIX}{field}".upper()


def setting_key(kind: type[BaseSettings], field: str) -> str:
    """Return the name of a setting in a settings file: its variable's without the prefix, in lower case."""
    return variable(kind, field).removeprefix(PREFIX).lower()


def _option(field: str) -> str:
    """Return the option of a setting. Flower's own settings begin with its name, their options do not."""
    return f"--{_SINGULAR.get(field, field).removeprefix('flower_').replace('_', '-')}"


def _read_file() -> Mapping[str, Any]:
    """Read the settings file that the environment names; empty if it names none.

    Raises:
        ConfigurationError: the file cannot be read, or is not TOML.
    """
    path = os.environ.get(SETTINGS_VARIABLE, "")
    if not path:
        return {}
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise ConfigurationError(f"the settings file {path} has more than {MAX_FILE_BYTES} bytes")
        return tomllib.loads(raw.decode())
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the settings file {path} ({SETTINGS_VARIABLE}): {error.strerror}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"the settings file {path} is not TOML: {error}") from None


@dataclass(frozen=True, slots=True)
class _Given:
    """The places at which settings of one kind are given."""

    kind: type[BaseSettings]
    #: Value of each option of the command, None for options that were not given.
    options: Mapping[str, Any]
    #: Content of the settings file.
    content: Mapping[str, Any]

    def origin(self, field: str) -> Origin:
        """Return the strongest place at which a setting is given."""
        if self.options.get(field) is not None:
            return Origin.OPTION
        if variable(self.kind, field) in os.environ:
            return Origin.ENVIRONMENT
        if setting_key(self.kind, field) in self.content:
            return Origin.FILE
        return Origin.MISSING if self.kind.model_fields[field].is_required() else Origin.DEFAULT

    def value(self, field: str) -> Any:
        """Return the value of a setting as it is written, unchecked; None for one that is missing."""
        match self.origin(field):
            case Origin.OPTION:
                return self.options[field]
            case Origin.ENVIRONMENT:
                return os.environ[variable(self.kind, field)]
            case Origin.FILE:
                return self.content[setting_key(self.kind, field)]
            case Origin.MISSING:
                return None
        return self.kind.model_fields[field].get_default(call_default_factory=True, validated_data={})

    def unknown(self) -> list[str]:
        """Return a sentence for each name in the settings file that is no setting."""
        known = [setting_key(self.kind, field) for field in self.kind.model_fields]
        sentences = []
        for name in self.content:
            if name in known or name.startswith(_COMMON):
                continue
            close = get_close_matches(name, known, 1)
            sentences.append(f"there is no setting {name}" + (f"; did you mean {close[0]}?" if close else ""))
        return sentences

    def sentence(self, item: ErrorDetails) -> str:
        """Return a sentence about a wrong value, with the option and the variable that set it."""
        if not item["loc"] or (field := str(item["loc"][0])) not in self.kind.model_fields:
            return item["msg"].removeprefix("Value error, ")
        name = variable(self.kind, field)
        option = _option(field) if field in self.options else ""
        if item["type"] == "missing":
            return f"{name} is not set" + (f"; set it or give {option}" if option else "")
        if self.origin(field) is Origin.FILE:
            name = f"{setting_key(self.kind, field)} in {os.environ[SETTINGS_VARIABLE]}"
        where = ".".join(map(str, item["loc"][1:]))
        names = (f"{name} ({option})" if option else name) + (f", {where}" if where else "")
        return f"{names}: {item['msg'].removeprefix('Value error, ')}"


def origins(kind: type[BaseSettings], **options: Any) -> dict[str, Origin]:
    """Return the source of the value of each setting.

    Raises:
        ConfigurationError: the settings file cannot be read.
    """
    given = _Given(kind, options, _read_file())
    return {field: given.origin(field) for field in kind.model_fields}


def given_values(kind: type[BaseSettings]) -> dict[str, Any]:
    """Return the value of each setting as it is written, for settings that `read_settings` refuses.

    Raises:
        ConfigurationError: the settings file cannot be read.
    """
    given = _Given(kind, {}, _read_file())
    return {field: given.value(field) for field in kind.model_fields}


def read_settings(kind: type[S], what: str, **options: Any) -> S:
    """Read the settings of a command.

    Args:
        kind: class of the settings.
        what: name of the command or component, for messages.
        options: values of options by the setting's name; None for options that were not given.

    Raises:
        ConfigurationError: a setting is missing or wrong, or the settings file contains an unknown one; the message
            names each, with its option and variable.
    """
    given = _Given(kind, options, _read_file())
    sentences = given.unknown()
    try:
        settings = kind(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        items = error.errors(include_url=False, include_context=False, include_input=False)
        sentences += [given.sentence(item) for item in items]
    except SettingsError as error:
        sentences.append(str(error.__cause__))
    if sentences:
        raise ConfigurationError(f"{what} settings: {'; '.join(sentences)}")
    return settings
