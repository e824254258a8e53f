"""The command `tachikoma`."""

from __future__ import annotations

from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line and exit."""
    # Imported here, so that a module of this package can be used without all commands.
    from tachikoma.cli.app import run

    run()
