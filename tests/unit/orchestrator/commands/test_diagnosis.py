"""The doctor's look at the authority of an orchestrator; the other checks have tests with a real orchestrator."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from tachikoma.identity.authority import CertificateAuthority
from tachikoma_orchestrator.commands.diagnosis import check_authority

DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("life", "left", "soon"),
    [(365, 61, False), (365, 59, True), (40, 11, False), (40, 9, True)],
)
def test_an_authority_is_reported_60_days_or_a_quarter_of_its_life_before_it_ends(
    tmp_path: Path, life: int, left: int, soon: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = CertificateAuthority.create(tmp_path, "example.org", name="CA", lifetime=left * DAY)
    monkeypatch.setattr(CertificateAuthority, "lifetime", property(lambda _: life * DAY))
    found = list(check_authority(tmp_path))
    assert [(item.where, f"{authority.not_after:%Y-%m-%d}" in item.what) for item in found] == (
        [("TACHIKOMA_CA", True)] if soon else []
    )
    assert all("run `tachikoma setup`" in item.remedy for item in found)


def test_an_authority_that_cannot_be_used_is_reported(tmp_path: Path) -> None:
    (finding,) = check_authority(tmp_path)
    assert str(tmp_path) in finding.what
