"""What all tests share: where Redis comes from, and the rule that nothing is skipped in CI."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Test folders are no packages; what they share is imported by its plain name.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "end_to_end")]

# Commands of tests look at files of the tests, so they run as whoever runs those; that the default is another user is
# tested by itself.
os.environ["TACHIKOMA_USER"] = getpass.getuser()
#: A redis-server or valkey-server to test with instead of the embedded Valkey.
REDIS_SERVER = os.environ.get("TACHIKOMA_TEST_REDIS_SERVER")


@pytest.fixture(scope="session")
def redis_server() -> Path | None:
    """The server to run; None for the embedded Valkey."""
    return Path(REDIS_SERVER) if REDIS_SERVER else None


@pytest.fixture
def need() -> Callable[[bool, str], None]:
    """Say what a test needs of the machine. A laptop may lack it; CI must not."""

    def check(available: bool, what: str) -> None:
        if available:
            return
        if os.environ.get("CI"):
            pytest.fail(f"CI lacks {what}", pytrace=False)
        pytest.skip(f"needs {what}")

    return check
