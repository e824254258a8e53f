"""Descriptors of the worker: its limit, and the slots that it is enough for."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from tachikoma_worker.engine import descriptors as module
from tachikoma_worker.engine.descriptors import PER_SLOT, RESERVED, fitting_slots


@pytest.mark.parametrize(
    ("hard", "wanted", "expected"),
    [
        (1_048_576, 64, 64),
        (256, 64, (256 - RESERVED) // PER_SLOT),
        (1024, 4096, (1024 - RESERVED) // PER_SLOT),
        (RESERVED, 64, 1),
        (16, 64, 1),
        (resource.RLIM_INFINITY, 4096, 4096),
    ],
)
def test_no_more_slots_are_taken_than_there_are_descriptors_for(
    monkeypatch: pytest.MonkeyPatch, hard: int, wanted: int, expected: int
) -> None:
    monkeypatch.setattr(module.resource, "getrlimit", lambda _: (16, hard))
    assert fitting_slots(wanted) == expected


def test_the_soft_limit_becomes_the_hard_one() -> None:
    script = (
        "import resource as r; from tachikoma_worker.engine.descriptors import raise_limit;"
        "r.setrlimit(r.RLIMIT_NOFILE, (64, 200)); raise_limit(); print(*r.getrlimit(r.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "200 200\n"
