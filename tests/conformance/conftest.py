"""The border of an agent's engine: an engine as a process, and the suite in the place of the orchestrator."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Test folders are no packages; what they share is imported by its plain name.
sys.path.insert(0, str(Path(__file__).parent))
from border import Border
from traces import Traces


@pytest.fixture(scope="module")
def border(redis_server: Path | None) -> Iterator[Border]:
    """An engine that the tests of a module share. They leave it running."""
    with Border(redis_server) as running:
        yield running


@pytest.fixture
def traces(tmp_path: Path) -> Iterator[Traces]:
    """The folder of a test's command, which ends with the test."""
    with Traces.within(tmp_path / "traces") as made:
        yield made
