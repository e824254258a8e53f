"""`tachikoma policy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tachikoma.policy import PolicySet

__all__ = ["policy"]

policy = typer.Typer(no_args_is_help=True, help="Check policy files.")


@policy.callback()
def _group() -> None:
    """Keeps `policy` a group while it has one command."""


@policy.command()
def check(file: Annotated[Path, typer.Argument(help="The policy file.")]) -> None:
    """Say whether a policy file is right; each mistake with line and column."""
    found = PolicySet.load(file)
    number = len(found.policies)
    typer.echo(f"{file}: {number} {'policy' if number == 1 else 'policies'}, all right")
