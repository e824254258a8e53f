"""What unit tests share: certificate authorities."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from authority import Authority

#: Examples of each property; `make quick` asks for fewer.
EXAMPLES = int(os.environ.get("TACHIKOMA_TEST_EXAMPLES", "60"))

# No deadlines: a busy machine is no bug. No database: the tests leave nothing behind.
settings.register_profile("tachikoma", deadline=None, max_examples=EXAMPLES, database=None)
settings.load_profile("tachikoma")


@pytest.fixture(scope="session")
def new_authority() -> type[Authority]:
    """To make authorities of a test's own."""
    return Authority


@pytest.fixture(scope="session")
def authority() -> Authority:
    """The authority of trust domain `tachikoma.local`."""
    return Authority()


@pytest.fixture(scope="session")
def stranger() -> Authority:
    """An authority nobody trusts, although it claims the same trust domain."""
    return Authority()
