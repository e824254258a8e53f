"""The table of the versions of all formats that processes of different versions exchange.

A version is raised when an older reader would misunderstand the format. A new field that an older reader may ignore
raises none; one that every reader must understand is named in `crit` of its message. `docs/decisions/0031-formats.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["FORMATS", "difference"]

#: The version that this program writes and reads, for each format.
FORMATS: Mapping[str, int] = MappingProxyType(
    {
        #: `WorkOrder`, from the orchestrator to an agent.
        "order": 1,
        #: `SignedRequest` and `SignedBatchRequest`, from an application to the submitter.
        "request": 1,
        #: `Receipt`, from an agent to the orchestrator.
        "receipt": 1,
        #: `Heartbeat`, from an agent to the orchestrator.
        "heartbeat": 1,
        #: The value of `agent.<id>:claim:<execution>`: the id of a journal.
        "claim": 1,
        #: `SessionOffer` and `SessionAnswer`, and the frames sealed under them.
        "session": 1,
    }
)


def difference(theirs: Mapping[str, int]) -> str:
    """Return, in words, the formats whose versions differ between another program and this one; empty for none.

    Args:
        theirs: versions by format. A format that is missing has version 1, since the first programs reported none.
    """
    found = [(name, theirs.get(name, 1), own) for name, own in FORMATS.items() if theirs.get(name, 1) != own]
    return ", ".join(f"{name} format {other} instead of {own}" for name, other, own in found)
