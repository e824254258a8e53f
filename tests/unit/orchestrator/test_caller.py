"""The caller of an RPC as a value."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from tachikoma.identity.spiffe import user_id
from tachikoma_orchestrator.caller import Peer

ALICE = user_id("tachikoma.local", "alice")


def test_a_caller_reads_as_its_spiffe_id() -> None:
    assert str(Peer(ALICE, "192.0.2.7")) == "spiffe://tachikoma.local/user/alice"


def test_a_caller_cannot_become_another() -> None:
    peer = Peer(ALICE, "")
    with pytest.raises(FrozenInstanceError):
        peer.spiffe_id = user_id("tachikoma.local", "root")  # type: ignore[misc]
    assert peer == Peer(ALICE, "", None)
