"""The command `tachikoma`."""

from __future__ import annotations

import gc
import os
from typing import NoReturn

__all__ = ["main", "program"]


def main() -> NoReturn:
    """Run the command line and exit."""
    # No model here has a plug-in. Without this, pydantic reads the metadata of every installed distribution.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # Imported here, so that a module of this package can be used without all commands.
    from tachikoma.cli.app import run

    run()


def program() -> NoReturn:
    """Run `main` as the whole process, without the work of Python that only long processes need.

    Imports create no garbage, so the collector is off until a command runs. A command of the client exits at once when
    it is done, because unloading all modules takes longer than a short command.
    """
    gc.disable()
    try:
        main()
    except SystemExit as end:
        from tachikoma.cli.components import LASTING, ComponentCommand
        from tachikoma.cli.descriptors import leave

        if ComponentCommand.last in LASTING or not isinstance(end.code, int):
            raise
        leave(end.code)
