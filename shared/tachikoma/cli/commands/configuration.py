"""`tachikoma config`: the settings that a part on this host would start with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit, urlunsplit

import typer
from pydantic import BaseModel, SecretStr

from tachikoma.cli.commands.parts import InstalledOption, Part, enter_installed, settings_class
from tachikoma.cli.documents import SettingFacts, SettingsCheck
from tachikoma.cli.output import Output, OutputOption, WideOption, show_list, show_value
from tachikoma.cli.show import warn
from tachikoma.cli.tables import Column, table
from tachikoma.config.settings import (
    PREFIX,
    SETTINGS_VARIABLE,
    PartSettings,
    given_values,
    origins,
    read_settings,
    variable,
)
from tachikoma.errors import ConfigurationError
from tachikoma.vocabulary.durations import format_duration

__all__ = ["config"]

config = typer.Typer(no_args_is_help=True, help="Show and check the settings of a part, as it would start with them.")

COLUMNS = (Column("SETTING"), Column("FROM", 1), Column("VALUE", elastic=True))
#: Shown for a value that is secret.
HIDDEN = "***"
#: Variables that are no setting of a part.
OTHERS = frozenset({SETTINGS_VARIABLE, "TACHIKOMA_PROFILE", "TACHIKOMA_POLICY"})


PartArgument = Annotated[Part, typer.Argument(help="The part.")]


@config.command()
def show(
    part: PartArgument, installed: InstalledOption = False, wide: WideOption = False, output: OutputOption = Output.TEXT
) -> None:
    """Show each setting of a part with its value and the source of the value. Passwords are hidden.

    On a host where the part is installed, it shows the settings of the part's unit, unless this shell has some. Exits 1
    if a setting is missing or wrong, after it has shown the settings as they are written.
    """
    kind = settings_class(part)
    unit = enter_installed(part, forced=installed)
    values, mistakes = _values(kind, part)
    found = origins(kind)
    facts = [
        SettingFacts(
            setting=variable(kind, name),
            value=HIDDEN if value and _is_secret(kind, name) else _text(value),
            origin=found[name].value,
        )
        for name, value in values.items()
    ]
    show_list(facts, output, name=lambda fact: fact.setting, text=lambda facts: _show(facts, wide))
    if unit is not None:
        warn(f"tachikoma: the environment is that of {unit}")
    if mistakes:
        warn(f"tachikoma: {mistakes}")
        raise typer.Exit(1)


@config.command()
def check(part: PartArgument, installed: InstalledOption = False, output: OutputOption = Output.TEXT) -> None:
    """Check the settings of a part, and name variables that no part reads. Exits 1 if a setting is wrong.

    On a host where the part is installed, it checks the settings of the part's unit as the unit's user, unless this
    shell has some. Run it as root there.
    """
    kind = settings_class(part)
    unit = enter_installed(part, forced=installed)
    if unit is not None:
        unit.become()
    settings = read_settings(kind, part)
    found = SettingsCheck(
        part=part,
        settings=len(kind.model_fields),
        source="environment" if unit is None else str(unit),
        unknown=tuple(unknown_variables(kind)),
        problems=tuple(missing_files(settings)),
    )
    show_value(found, output, text=_show_check)
    if found.problems:
        raise typer.Exit(1)


def _show_check(found: SettingsCheck) -> None:
    for name in found.unknown:
        warn(f"tachikoma: {name} is no setting of the {found.part}")
    for sentence in found.problems:
        warn(f"tachikoma: {sentence}")
    if not found.problems:
        origin = "" if found.source == "environment" else f", from {found.source}"
        typer.echo(f"{found.part}: {found.settings} settings{origin}, all right")


def _values(kind: type[PartSettings], part: Part) -> tuple[dict[str, Any], str]:
    """Return the values of all settings, and what is wrong with them; if something is, values as they are written."""
    try:
        settings = read_settings(kind, part)
    except ConfigurationError as error:
        return given_values(kind), str(error)
    return {name: getattr(settings, name) for name in kind.model_fields}, ""


def _is_secret(kind: type[PartSettings], name: str) -> bool:
    return "SecretStr" in str(kind.model_fields[name].annotation)


def unknown_variables(kind: type[PartSettings]) -> list[str]:
    """Return environment variables that look like settings, but that neither this part nor all parts read."""
    known = {variable(kind, field) for field in kind.model_fields} | OTHERS
    return sorted(
        name
        for name in os.environ
        if name.startswith(PREFIX) and name not in known and not name.startswith(f"{PREFIX}SENTRY_")
    )


def missing_files(settings: PartSettings) -> list[str]:
    """Return a sentence for each path that is set, not created by the part itself, and cannot be read."""
    made = {"data", "audit_log", "spawner"}
    sentences = []
    for name in type(settings).model_fields:
        path = getattr(settings, name)
        if name not in made and isinstance(path, Path) and not os.access(path, os.R_OK):
            reason = "cannot be read by this user" if path.exists() else "does not exist"
            sentences.append(f"{variable(type(settings), name)}: {path} {reason}")
    return sentences


def _show(found: Sequence[SettingFacts], wide: bool) -> None:
    table(COLUMNS, [(fact.setting, fact.origin, fact.value or "-") for fact in found], wide=wide)


def _text(value: Any) -> str:
    """Return a value as people write it in the environment; passwords are hidden."""
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        return HIDDEN
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, BaseModel):
        return ",".join(f"{name}={_text(part)}" for name, part in value.model_dump(by_alias=True).items())
    if isinstance(value, dict):
        return ",".join(f"{name}={part}" for name, part in value.items())
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return ",".join(map(str, value))
    if hasattr(value, "total_seconds"):
        return format_duration(value)
    return _without_password(str(value))


def _without_password(text: str) -> str:
    parts = urlsplit(text) if "://" in text else None
    if parts is None or parts.password is None:
        return text
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:{HIDDEN}@{parts.netloc.rpartition('@')[2]}"))
