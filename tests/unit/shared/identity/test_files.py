"""The files of an identity, through crashes."""

from __future__ import annotations

import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tachikoma.identity.authority import (
    CertificateAuthority,
    new_key,
    private_pem,
)
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.files import (
    BUNDLE_FILE,
    CERTIFICATE_FILE,
    KEY_FILE,
    finish_writing,
    write_identity,
    write_private,
)
from tachikoma.identity.spiffe import agent_id

DOMAIN = "tachikoma.local"
WEB = agent_id(DOMAIN, "web-1")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    folder = tmp_path_factory.mktemp("root")
    return CertificateAuthority.create(folder, DOMAIN, name="Root", lifetime=timedelta(days=9))


def identity(root: CertificateAuthority) -> dict[str, bytes]:
    key = new_key()
    leaf = root.sign(key.public_key(), WEB, lifetime=timedelta(hours=1))
    bundle = root.certificate.public_bytes(Encoding.PEM)
    return {"key_pem": private_pem(key), "certificate_pem": root.chain(leaf), "bundle_pem": bundle}


class Crash(Exception):
    """The host lost its power."""


def test_wherever_a_crash_interrupts_it_an_identity_is_the_old_or_the_new_one(
    root: CertificateAuthority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, whole = 0, 0
    for crash_at in range(100):
        folder = tmp_path / str(crash_at)
        old, new = identity(root), identity(root)
        write_identity(folder, **old)
        steps = 0

        def step(crash_at: int = crash_at) -> None:
            nonlocal steps
            steps += 1
            if steps > crash_at:
                raise Crash

        with monkeypatch.context() as patch:
            for name in ("replace", "rename", "mkdir", "rmdir"):
                real = getattr(Path, name)

                def either(self: Path, *arguments: object, real: object = real, **options: object) -> object:
                    step()
                    return real(self, *arguments, **options)  # type: ignore[operator]

                patch.setattr(Path, name, either)
            try:
                write_identity(folder, **new)
            except Crash:
                pass
            else:
                whole += 1
        finish_writing(folder)
        found = FileSvidSource(folder).current()
        assert found.certificate_pem in (old["certificate_pem"], new["certificate_pem"])
        assert sorted(path.name for path in folder.iterdir()) == sorted([CERTIFICATE_FILE, KEY_FILE, BUNDLE_FILE])
        if whole:
            break
    assert steps > 6
    assert found.certificate_pem == new["certificate_pem"]


def test_nobody_else_can_read_an_identity(root: CertificateAuthority, tmp_path: Path) -> None:
    write_identity(tmp_path / "a", **identity(root))
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "a" / KEY_FILE).stat().st_mode) == 0o600


def test_a_private_file_is_replaced_as_a_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(OSError, match="directory"):
        write_private(tmp_path / "folder" / "file", b"x")
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match="irectory"):
        write_private(path, b"x")
    assert list(tmp_path.iterdir()) == [path]
