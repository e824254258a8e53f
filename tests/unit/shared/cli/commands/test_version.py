"""`tachikoma version`."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from typing import Any


def test_the_versions_are_shown_in_each_form(run: Any) -> None:
    installed = version("tachikoma-exec")
    assert run("version").out == f"tachikoma  {installed}\npython     {platform.python_version()}\n"
    assert run("version", "-o", "name").out == f"{installed}\n"
    assert json.loads(run("version", "-o", "json").out) == {"version": installed, "python": platform.python_version()}
