"""The passwords of Redis users, in files."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from tachikoma.errors import ConfigurationError
from tachikoma.redis.users import OPTIONAL, SERVICES, grants_of

__all__ = ["Passwords", "read_password"]


def read_password(path: Path) -> str:
    """Return the password in a file: its first line.

    Raises:
        ConfigurationError: the file cannot be read, or is empty.
    """
    return _read_passwords(path)[0]


def _read_passwords(path: Path) -> list[str]:
    try:
        found = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the Redis password in {path}: {error}") from error
    if not found:
        raise ConfigurationError(
            f"there is no password in {path}; `tachikoma redis acl` generates one if the file is missing"
        )
    return found


class Passwords:
    """A folder with a file for each user, named like the user; so it is also the list of users.

    A file contains one password per line. Clients use the first; Redis accepts all, so that a password can be replaced
    while clients still use the old one.
    """

    def __init__(self, folder: Path) -> None:
        """Use a folder; it is created if it is missing.

        Raises:
            ConfigurationError: the folder cannot be created.
        """
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigurationError(f"cannot use the folder of passwords {folder}: {error}") from error

    def path(self, user: str) -> Path:
        """Return the file of a user's passwords."""
        return self.folder / user

    def users(self) -> list[str]:
        """Return the users that have a password: services first, in their order, then agents and applications."""
        names = {path.name for path in self.folder.iterdir() if not path.name.startswith(".")}
        for name in names:
            grants_of(name)
        services = SERVICES | OPTIONAL
        return [*(name for name in services if name in names), *sorted(names - services.keys())]

    def make(self, user: str) -> None:
        """Generate a password of 256 random bits for a user that has none.

        Raises:
            ConfigurationError: no part of Tachikoma has a user of this name, or the file cannot be written.
        """
        grants_of(user)
        try:
            descriptor = os.open(self.path(user), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return
        except OSError as error:
            raise ConfigurationError(f"cannot write the password of {user} to {self.path(user)}: {error}") from error
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"{secrets.token_hex(32)}\n")

    def hashes(self, user: str) -> list[str]:
        """Return the SHA-256 of each of a user's passwords, in hexadecimal, as Redis stores them.

        Raises:
            ConfigurationError: the file cannot be read, or is empty.
        """
        return [hashlib.sha256(password.encode()).hexdigest() for password in _read_passwords(self.path(user))]
