"""Faults: processes that are killed or stopped, networks that break, disks that are full, clocks that are wrong."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

# Test folders are no packages; what they share is imported by its plain name.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def debian() -> Path:
    """Debian's redis-server, which has TLS and Sentinel. A laptop may lack it; CI must not."""
    found = shutil.which("redis-server")
    if found:
        return Path(found)
    if os.environ.get("CI"):
        pytest.fail("CI lacks redis-server", pytrace=False)
    pytest.skip("needs redis-server")
