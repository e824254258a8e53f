"""The manifest of a backup: its contents, and the digests by which damage is found."""

from __future__ import annotations

import hashlib
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from tachikoma.errors import ConfigurationError
from tachikoma.vocabulary.model import Model

__all__ = ["ACL", "AUDIT", "JOURNALS", "MANIFEST", "SNAPSHOT", "Content", "Manifest", "content_of", "read_manifest"]

#: Names in the folder of a backup: the data, the users, copies of audit logs and journals, and the manifest.
SNAPSHOT, ACL, AUDIT, JOURNALS, MANIFEST = "redis.rdb", "users.acl", "audit", "journals", "manifest.json"
#: Bytes that are read at once.
BLOCK = 1024 * 1024


class Content(Model):
    """A file of a backup."""

    size: int
    #: SHA-256, in hexadecimal.
    sha256: str


class Manifest(Model):
    """The contents of a backup. It is written last, so a backup without it is not complete."""

    #: Version of the layout of a backup.
    format: int = 1
    made_at: datetime
    #: Name and version of the server.
    server: str
    #: `master_replid` of the server, and its offset of replication.
    replid: str
    offset: int
    #: Number of keys, and of the latest audit event, shortly before the copy.
    keys: int
    audit_seq: int
    #: The files, by their path in the folder.
    files: dict[str, Content]


def content_of(file: Path) -> Content:
    """Return size and digest of a file. Raises OSError."""
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as opened:
        while block := opened.read(BLOCK):
            digest.update(block)
            size += len(block)
    return Content(size=size, sha256=digest.hexdigest())


def read_manifest(backup: Path) -> Manifest:
    """Read the manifest of a backup.

    Raises:
        ConfigurationError: the manifest is missing, or another version wrote it.
    """
    file = backup / MANIFEST
    try:
        manifest = Manifest.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{backup} is no complete backup: cannot read {file}: {error.strerror}") from None
    except ValidationError as error:
        raise ConfigurationError(f"{file} is no manifest of a backup: {str(error)[:200]}") from None
    if manifest.format != 1:
        raise ConfigurationError(f"{backup} has format {manifest.format}; this version reads format 1")
    return manifest
