from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

# Tests are loaded one by one (importmode importlib), so what they share is found by its folder.
sys.path.insert(0, str(Path(__file__).parent))
from host import CONTAINER, PYTHON, ROOT, Host, a_host

from tachikoma.vocabulary.isolation import Isolation
from tachikoma_worker.confinement import launch

# Another build of the spawner to test, such as one with sanitizers.
if "TACHIKOMA_TEST_SPAWNER" in os.environ:
    launch.PROGRAM = Path(os.environ["TACHIKOMA_TEST_SPAWNER"])


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    async with a_host() as made:
        yield made


@pytest.fixture
def root(need: Callable[[bool, str], None]) -> None:
    need(ROOT, "root")


@pytest.fixture
def isolating(root: None, host: Host, need: Callable[[bool, str], None]) -> None:
    """A host that can isolate commands at each level."""
    need(bool(PYTHON), "a Python outside a virtual environment")
    if CONTAINER and host.abilities.levels[Isolation.PRIVATE]:
        # Such a container is a host of its own kind: it says that it cannot, and refuses.
        pytest.skip("this container may not make namespaces")
    need(not any(host.abilities.levels.values()), f"namespaces: {dict(host.abilities.levels)}")


@pytest.fixture
def limits(host: Host, root: None, need: Callable[[bool, str], None]) -> None:
    """Cgroups in which memory, processors and processes can be limited."""
    if CONTAINER == "read-only":
        pytest.skip("this container may not write its cgroups")
    need({"memory", "cpu", "pids"} <= host.cgroups.controllers, "cgroups that root may make")
