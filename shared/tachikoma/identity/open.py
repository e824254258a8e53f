"""Which of the sources of `svid.py` a process takes its identity from."""

from __future__ import annotations

import os
from pathlib import Path

from tachikoma.errors import ConfigurationError
from tachikoma.identity.svid import FileSvidSource, SvidSource

__all__ = ["ENDPOINT_VARIABLE", "open_identity"]

#: Where the Workload API listens (SPIFFE Workload Endpoint, section 4).
ENDPOINT_VARIABLE = "SPIFFE_ENDPOINT_SOCKET"


def open_identity(place: str | Path | None) -> SvidSource:
    """The identity of this process: in the folder given, or from the Workload API that is given, or that the
    environment names where nothing is given.

    Raises:
        ConfigurationError: there is none, or it cannot be read.
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
        # Not for those who have files: it takes a while to import.
        from tachikoma.identity.workload_api import WorkloadSvidSource

        return WorkloadSvidSource(place)
    return FileSvidSource(Path(place))
