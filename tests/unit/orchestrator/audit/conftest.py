"""The identities that sign chains of the audit log."""

from __future__ import annotations

import pytest

from audit_chain import writer
from tachikoma.identity.file_source import FileSvidSource


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> FileSvidSource:
    return writer(tmp_path_factory.mktemp("identity"))


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> FileSvidSource:
    """The same name, by an authority that is not trusted."""
    return writer(tmp_path_factory.mktemp("stranger"))
