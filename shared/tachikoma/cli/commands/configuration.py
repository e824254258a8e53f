"""`tachikoma config`: the settings that a part on this host would start with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit, urlunsplit

import typer
from pydantic import BaseModel, SecretStr

from tachikoma.cli.commands.parts import Part, settings_class
from tachikoma.cli.documents import SettingFacts
from tachikoma.cli.output import Output, OutputOption, WideOption, show_list
from tachikoma.cli.show import warn
from tachikoma.cli.tables import Column, table
from tachikoma.config.settings import PREFIX, SETTINGS_VARIABLE, PartSettings, origins, read_settings, variable
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
def show(part: PartArgument, wide: WideOption = False, output: OutputOption = Output.TEXT) -> None:
    """Show each setting of a part with its value and the source of the value. Passwords are hidden.

    Run it in the part's own environment.
    """
    kind = settings_class(part)
    settings = read_settings(kind, part)
    found = origins(kind)
    facts = [
        SettingFacts(setting=variable(kind, name), value=_text(getattr(settings, name)), origin=found[name].value)
        for name in kind.model_fields
    ]
    show_list(facts, output, name=lambda fact: fact.setting, text=lambda facts: _show(facts, wide))


@config.command()
def check(part: PartArgument) -> None:
    """Check the settings of a part, and name variables that no part reads. Exits 1 if a setting is wrong."""
    kind = settings_class(part)
    settings = read_settings(kind, part)
    for name in unknown_variables(kind):
        warn(f"tachikoma: {name} is no setting of the {part}")
    missing = missing_files(settings)
    for sentence in missing:
        warn(f"tachikoma: {sentence}")
    if missing:
        raise typer.Exit(1)
    typer.echo(f"{part}: {len(kind.model_fields)} settings, all right")


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
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return ",".join(map(str, value))
    if hasattr(value, "total_seconds"):
        return format_duration(value)
    return _without_password(str(value))


def _without_password(text: str) -> str:
    parts = urlsplit(text) if "://" in text else None
    if parts is None or parts.password is None:
        return text
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:{HIDDEN}@{parts.netloc.rpartition('@')[2]}"))
