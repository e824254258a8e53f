"""Writing the files of an identity, so that neither a reader nor a crash finds half of them.

Each file is replaced as a whole; between the three replacements a reader keeps what it had (`svid.py`). A process that
starts has nothing to keep: so a whole set lies beside them first, and whoever starts finishes what a crash interrupted.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from tachikoma.identity.svid import BUNDLE_FILE, CERTIFICATE_FILE, KEY_FILE

__all__ = ["finish_writing", "write_identity", "write_private"]

#: A set that is whole, and not all in its place yet; and one that is being written.
_WHOLE, _PARTIAL = ".next", ".next.partial"


def write_private(path: Path, content: bytes) -> None:
    """Replace a file as a whole, readable by its owner only."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_identity(folder: Path, *, key_pem: bytes, certificate_pem: bytes, bundle_pem: bytes) -> None:
    """Write an identity as spiffe-helper does: svid.pem, svid_key.pem and svid_bundle.pem.

    Raises:
        OSError: the folder cannot be written; what was there can be used as before.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    finish_writing(folder)
    partial = folder / _PARTIAL
    partial.mkdir(mode=0o700)
    for name, content in ((KEY_FILE, key_pem), (BUNDLE_FILE, bundle_pem), (CERTIFICATE_FILE, certificate_pem)):
        write_private(partial / name, content)
    _sync(partial)
    partial.rename(folder / _WHOLE)
    _sync(folder)
    finish_writing(folder)


def finish_writing(folder: Path) -> None:
    """Put in place what a crash left beside it, if it is whole. Only for the one process that writes there.

    Raises:
        OSError: the folder cannot be written.
    """
    shutil.rmtree(folder / _PARTIAL, ignore_errors=True)
    whole = folder / _WHOLE
    if not whole.is_dir():
        return
    for name in (KEY_FILE, BUNDLE_FILE, CERTIFICATE_FILE):
        if (whole / name).exists():
            (whole / name).replace(folder / name)
    _sync(folder)
    whole.rmdir()
