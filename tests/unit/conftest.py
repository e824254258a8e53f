"""What unit tests share: certificate authorities."""

from __future__ import annotations

import pytest

from authority import Authority


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
