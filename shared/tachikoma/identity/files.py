"""The files of an identity, written so that a reader or a restart after a crash never uses half of them.

Each file is replaced as a whole; between the three replacements a reader retains the previous identity (`svid.py`). A
process that starts has no previous identity. So the complete set is first written beside the files, and the process
that writes them completes at its start what a crash interrupted.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

__all__ = [
    "BUNDLE_FILE",
    "CERTIFICATE_FILE",
    "FEDERATED_FOLDER",
    "KEY_FILE",
    "finish_writing",
    "write_identity",
    "write_private",
]

#: Names of the files, as spiffe-helper writes them by default.
CERTIFICATE_FILE = "svid.pem"
KEY_FILE = "svid_key.pem"
BUNDLE_FILE = "svid_bundle.pem"
#: Folder beside them with a bundle for each federated trust domain: `<trust domain>.pem`.
FEDERATED_FOLDER = "federated"

#: Folders beside the files: a complete set that is being put in place, and a set that is being written.
_WHOLE, _PARTIAL = ".next", ".next.partial"


def write_private(path: Path, content: bytes) -> None:
    """Replace a file as a whole, readable by its owner only. Raises OSError."""
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
        OSError: the folder cannot be written; the previous identity stays usable.
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
    """Put a complete set in place that a crash left beside the files. Only for the one process that writes there.

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
