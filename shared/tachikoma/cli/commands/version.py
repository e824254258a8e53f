"""`tachikoma version`."""

from __future__ import annotations

import platform

import typer

from tachikoma.cli.documents import VersionFacts
from tachikoma.cli.output import Output, OutputOption, show_value
from tachikoma.cli.show import facts

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(version)


def version(output: OutputOption = Output.TEXT) -> None:
    """Show the versions of this installation, for bug reports."""
    from importlib.metadata import version as version_of

    found = VersionFacts(version=version_of("tachikoma-exec"), python=platform.python_version())
    show_value(
        found,
        output,
        name=lambda found: found.version,
        text=lambda found: facts([("tachikoma", found.version), ("python", found.python)]),
    )
