"""Faults: processes that are killed or stopped, networks that break, disks that are full, clocks that are wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Test folders are no packages; what they share is imported by its plain name.
sys.path.insert(0, str(Path(__file__).parent))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder as long: they repeat faults, or wait for what notices them."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("long")
