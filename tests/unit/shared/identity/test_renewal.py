"""When an identity is renewed, and by which process."""

from __future__ import annotations

from pathlib import Path

import pytest

from authority import Authority
from tachikoma.identity.renewal import HALF, due, left_seconds, renewal_lock

ID = "spiffe://tachikoma.local/user/ada"


def test_one_process_renews_an_identity_at_a_time(tmp_path: Path) -> None:
    with renewal_lock(tmp_path) as first, renewal_lock(tmp_path) as second:
        assert (first, second) == (True, False)
    with renewal_lock(tmp_path) as later:
        assert later


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"), renewal_lock(tmp_path / "missing"):
        pass


def test_a_new_certificate_is_due_at_half_of_its_life(authority: Authority) -> None:
    svid = authority.svid(ID)
    assert 0 < due(svid, HALF).total_seconds() < left_seconds(svid)
    assert due(svid, 1.0).total_seconds() <= 0
