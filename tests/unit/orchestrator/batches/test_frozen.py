"""The signed form of a batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from tachikoma.dev.ca import DevelopmentCA
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.signing import InvalidSignature
from tachikoma.identity.spiffe import service_id, user_id
from tachikoma.identity.svid import Svid
from tachikoma.vocabulary.batches import BatchRequest
from tachikoma_orchestrator.batches.frozen import Frozen, next_wave
from tachikoma_orchestrator.caller import Peer

DOMAIN = "tachikoma.local"
ALICE = Peer(user_id(DOMAIN, "alice"), "192.0.2.7")
TARGETS = ("web1", "web2", "db1")
REQUEST = BatchRequest(id="b-1", targets=("*",), command=("true",))


@pytest.fixture
def svid(tmp_path: Path) -> Svid:
    DevelopmentCA(tmp_path / "ca", DOMAIN).issue(service_id(DOMAIN, "orchestrator"), tmp_path / "o")
    return FileSvidSource(tmp_path / "o").current()


def test_it_is_read_as_it_was_signed(svid: Svid) -> None:
    frozen = Frozen.read(svid, "b-1", Frozen.make(svid, REQUEST, TARGETS, ALICE).signed(svid))
    assert (frozen.request, frozen.targets, frozen.peer) == (REQUEST, TARGETS, ALICE)
    assert frozen.places == {"web1": 0, "web2": 1, "db1": 2}


def test_each_target_has_one_id_that_nobody_can_guess(svid: Svid) -> None:
    token = Frozen.make(svid, REQUEST, TARGETS, ALICE).signed(svid)
    first, again = Frozen.read(svid, "b-1", token), Frozen.read(svid, "b-1", token)
    assert first.exec_id("web1") == again.exec_id("web1") != first.exec_id("web2")
    other = Frozen.read(svid, "b-1", Frozen.make(svid, REQUEST, TARGETS, ALICE).signed(svid))
    assert first.exec_id("web1") != other.exec_id("web1")


def test_a_batch_of_another_id_is_refused(svid: Svid) -> None:
    with pytest.raises(InvalidSignature, match="is of another batch"):
        Frozen.read(svid, "b-2", Frozen.make(svid, REQUEST, TARGETS, ALICE).signed(svid))


def test_a_changed_batch_is_refused(svid: Svid) -> None:
    head, payload, signature = Frozen.make(svid, REQUEST, TARGETS, ALICE).signed(svid).split(".")
    with pytest.raises(InvalidSignature):
        Frozen.read(svid, "b-1", f"{head}.{payload[:-4]}AAAA.{signature}")


@pytest.mark.parametrize(
    ("canary", "wave", "ends"),
    [(0, None, [10]), (2, None, [2, 10]), (0, "4", [4, 8, 10]), (1, "50%", [1, 6, 10]), (99, None, [10])],
)
def test_waves(canary: int, wave: str | None, ends: list[int]) -> None:
    request = BatchRequest(targets=("*",), command=("true",), canary=canary, wave=wave)
    found = [0]
    while found[-1] < 10:
        found.append(next_wave(request, 10, found[-1]))
    assert found[1:] == ends


def test_the_wave_that_ends_at_a_place(svid: Svid) -> None:
    request = BatchRequest(targets=("*",), command=("true",), canary=1, wave="2")
    targets = tuple(f"web{number}" for number in range(6))
    frozen = Frozen.make(svid, request, targets, ALICE)
    assert [frozen.last_wave(place) for place in (0, 1, 3, 5, 6)] == [
        (), targets[:1], targets[1:3], targets[3:5], targets[5:],
    ]  # fmt: skip
    # A place that nothing of this program wrote.
    assert frozen.last_wave(10**9) == targets[5:]
