"""The root in offline storage, over more than a year: `tachikoma setup` with a clock that the test moves."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tachikoma.identity.authority import CertificateAuthority
from tachikoma.identity.bundles import TrustBundle
from tachikoma.identity.file_source import FileSvidSource

CLOCK = Path(__file__).parents[1] / "faults" / "clock.c"
DOMAIN = "example.org"


class Years:
    """A host of an orchestrator, and every bundle that it has ever deployed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.host = folder, folder / "host"
        self.settings, self.root = self.host / "etc/tachikoma", self.host / "etc/tachikoma/root-ca"
        self.days = 0
        #: Agents that are off for long still have the first ones.
        self.bundles: list[TrustBundle] = []
        redis = folder / "redis-server"
        redis.write_text("#!/bin/sh\necho 'Redis server v=7.2.4'\n")
        redis.chmod(0o755)
        compiler, self._clock = os.environ.get("CC", "cc"), folder / "clock.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(self._clock), str(CLOCK)], check=True)
        # A port of 127.0.0.2 on which nothing listens.
        self._words = ["--root", str(self.host), "--redis-server", str(redis), "--host", "127.0.0.2"]
        self._words += ["--trust-domain", DOMAIN, "--operator", "ada", "--redis-port", "1"]

    def setup(self, *words: str) -> str:
        """Run the command on the current day, and check every certificate under every bundle."""
        clock = {"LD_PRELOAD": str(self._clock), "CLOCK_OFFSET": str(self.days * 86_400)}
        done = subprocess.run(
            [sys.executable, "-m", "tachikoma", "setup", *self._words, *words], env={**os.environ, **clock},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        state, home = self.host / "var/lib", self.host / Path.home().relative_to("/")
        places = [state / "tachikoma-orchestrator/identity", state / "tachikoma-redis/identity"]
        places.append(home / ".local/share/tachikoma/identities" / DOMAIN)
        svids = [FileSvidSource(place).current() for place in places]
        self.bundles += [svid.bundle for svid in svids]
        now = datetime.now(UTC) + timedelta(days=self.days)
        for svid in svids:
            for bundle in self.bundles:
                bundle.verify(svid.chain[0], list(svid.chain[1:]), now)
        return done.stdout

    def authority(self) -> CertificateAuthority:
        return CertificateAuthority.load(self.settings / "ca")


@pytest.mark.parametrize("moved", ["root-ca", "root-ca/ca_key.pem"], ids=["root", "key"])
def test_the_root_is_moved_away_put_back_after_8_months_and_moved_away_again(tmp_path: Path, moved: str) -> None:
    years = Years(tmp_path)
    here, away = years.settings / moved, tmp_path / "away"
    assert f"move {years.root} to offline storage" in years.setup()
    first = years.authority()

    here.rename(away)
    assert years.setup("--renew").splitlines() == ["nothing to do"]
    assert years.setup().splitlines()[0] == "nothing to do"
    # The timer renews for 8 months, and then says that the root is needed.
    for years.days in (16, 32, 240):
        assert "put the root back" not in years.setup("--renew")
    years.days = 250
    assert f"put the root back to {years.root}" in years.setup("--renew")
    assert not here.exists()
    assert years.authority().certificate == first.certificate

    away.rename(here)
    assert "replace the authority" in years.setup()
    second = years.authority()
    assert second.certificate != first.certificate
    assert first.certificate in second.retired

    here.rename(away)
    # The first authority has ended.
    years.days = 400
    shown = years.setup("--renew")
    assert "put the root back" not in shown
    assert not here.exists()
    assert years.authority().certificate == second.certificate
    assert not years.authority().ends_soon
