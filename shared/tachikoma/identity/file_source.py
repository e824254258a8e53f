"""An identity in files, as spiffe-helper and the development CA write them."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Lock
from typing import TypeAlias

from tachikoma.config.logs import get_logger
from tachikoma.errors import ConfigurationError
from tachikoma.identity.bundles import MAX_FEDERATED
from tachikoma.identity.files import BUNDLE_FILE, CERTIFICATE_FILE, FEDERATED_FOLDER, KEY_FILE
from tachikoma.identity.spiffe import InvalidIdentity
from tachikoma.identity.svid import Svid, renewed

__all__ = ["FileSvidSource"]

#: Least time between two checks of the files, in seconds.
CHECK_SECONDS = 1.0
#: Age from which on files are not being renewed any more, in seconds.
NEW_SECONDS = 5.0
#: Longest time in which the files of a renewal are all replaced, and between two attempts to read them, in seconds.
RENEWAL_SECONDS, RETRY_SECONDS = 0.3, 0.02

#: Names, times of change (ns), inodes and sizes of the files.
Signature: TypeAlias = tuple[tuple[str, int, int, int], ...]

log = get_logger(__name__)


class FileSvidSource:
    """An identity in a folder, loaded again when its files change. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        """Load the files.

        Raises:
            ConfigurationError: a file is missing, or the files do not match each other.
        """
        self.place = str(folder)
        self._paths = tuple(folder / name for name in (CERTIFICATE_FILE, KEY_FILE, BUNDLE_FILE))
        self._federated = folder / FEDERATED_FOLDER
        self._lock = Lock()
        self._checked = time.monotonic()
        try:
            self._seen, self._svid = self._load()
        except OSError as error:
            raise ConfigurationError(f"cannot read the identity in {folder}: {error}") from error
        except InvalidIdentity as error:
            raise ConfigurationError(f"the identity in {folder} cannot be used: {error}") from error

    def _load(self) -> tuple[Signature, Svid]:
        """Load the files, again for a moment if they do not match and are new: perhaps they are being renewed.

        Raises:
            OSError, InvalidIdentity: they cannot be used.
        """
        until = time.monotonic() + RENEWAL_SECONDS
        while True:
            signature = self._signature()
            try:
                return signature, Svid.load(*self._read())
            except InvalidIdentity:
                newest = max(mtime_ns for _, mtime_ns, *_ in signature) / 1e9
                if time.time() - newest > NEW_SECONDS or time.monotonic() > until:
                    raise
            time.sleep(RETRY_SECONDS)

    def current(self) -> Svid:
        """Return the most recent valid identity."""
        with self._lock:
            now = time.monotonic()
            if now - self._checked >= CHECK_SECONDS:
                self._checked = now
                self._reload()
            return self._svid

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def _reload(self) -> None:
        old = self._svid
        try:
            signature = self._signature()
            if signature == self._seen:
                return
            material = self._read()
            if self._signature() != signature:
                # The files change at this moment: try again next time.
                return
        except (OSError, InvalidIdentity) as error:
            # Perhaps between two writes: try again next time, and use the previous identity until then.
            log.warning("svid.kept", reason=str(error), spiffe_id=str(old.spiffe_id))
            return
        self._svid, problem = renewed(old, *material)
        if problem:
            log.warning("svid.kept", reason=problem, spiffe_id=str(old.spiffe_id))
        else:
            self._seen = signature
        if self._svid is not old:
            until = self._svid.not_after.isoformat()
            log.info("svid.changed", spiffe_id=str(self._svid.spiffe_id), until=until)

    def _files(self) -> list[Path]:
        federated: list[Path] = []
        if self._federated.is_dir():
            federated = sorted(path for path in self._federated.iterdir() if path.suffix == ".pem")
        if len(federated) > MAX_FEDERATED:
            raise InvalidIdentity(
                f"{self._federated} contains {len(federated)} bundles; at most {MAX_FEDERATED} are allowed"
            )
        return [*self._paths, *federated]

    def _signature(self) -> Signature:
        stats = [(path.name, path.stat()) for path in self._files()]
        return tuple((name, stat.st_mtime_ns, stat.st_ino, stat.st_size) for name, stat in stats)

    def _read(self) -> tuple[bytes, bytes, bytes, dict[str, bytes]]:
        certificate, key, bundle, *federated = self._files()
        return (
            certificate.read_bytes(),
            key.read_bytes(),
            bundle.read_bytes(),
            {path.stem: path.read_bytes() for path in federated},
        )
