"""The choice of a process's identity source: files or the SPIFFE Workload API."""

from __future__ import annotations

import os
from pathlib import Path

from tachikoma.errors import ConfigurationError
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.svid import SvidSource

__all__ = ["ENDPOINT_VARIABLE", "open_identity"]

#: Environment variable with the address of the Workload API (SPIFFE Workload Endpoint, section 4).
ENDPOINT_VARIABLE = "SPIFFE_ENDPOINT_SOCKET"


def open_identity(place: str | Path | None) -> SvidSource:
    """Open the identity source of this process.

    Args:
        place: a folder, or `unix:///path` of the Workload API; None or "" for the Workload API that the environment
            names.

    Raises:
        ConfigurationError: no source is configured, or it has no usable identity.
    """
    if not place:
        place = os.environ.get(ENDPOINT_VARIABLE, "")
        if not place:
            raise ConfigurationError(
                "no identity is configured: name the folder of an X.509-SVID with --identity, "
                f"or the socket of the SPIFFE Workload API in {ENDPOINT_VARIABLE}"
            )
        if not place.startswith("unix:"):
            raise ConfigurationError(f"{ENDPOINT_VARIABLE} is {place!r}; only unix:///path is supported")
    if isinstance(place, str) and place.startswith("unix:"):
        # Imported only when it is used, since the import is slow.
        from tachikoma.identity.workload_api import WorkloadSvidSource

        return WorkloadSvidSource(place)
    return FileSvidSource(Path(place))
