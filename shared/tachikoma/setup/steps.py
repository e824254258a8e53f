"""The steps of setting up a host, as values.

Each knows whether it is done, so applying a plan twice changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tachikoma.errors import ConfigurationError

__all__ = [
    "Accounts",
    "Address",
    "File",
    "Folder",
    "Host",
    "Secret",
    "Step",
    "Unit",
    "UnitFile",
    "Units",
    "apply",
    "pending",
    "replace_file",
]

#: Longest time of one command.
COMMAND_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Host:
    """The kinds of changes of this host, beside its files, that a plan may make."""

    #: True if files get the owners of the plan. This needs root, and the owners' accounts.
    owners: bool
    #: True if commands of systemd are run; else the operator runs them.
    services: bool

    @classmethod
    def real(cls, root: Path) -> Host:
        """Return the changes that a plan may make below a root folder.

        A root other than `/` is for tests and images: owners and units stay unchanged.
        """
        whole = root == Path("/")
        # systemd runs if this folder exists (sd_booted(3)).
        return cls(owners=whole and os.geteuid() == 0, services=whole and Path("/run/systemd/system").is_dir())

    def own(self, path: Path, owner: str) -> None:
        """Give a file or folder to its owner."""
        if self.owners and owner:
            try:
                shutil.chown(path, owner, owner)
            except LookupError:
                raise ConfigurationError(f"there is no user {owner!r} on this host, who is to own {path}") from None

    def owned(self, path: Path, owner: str) -> bool:
        """Return True if a file or folder has its owner."""
        if not self.owners or not owner:
            return True
        try:
            return path.owner() == owner
        except KeyError:
            return False


class Step(Protocol):
    """A step of a plan."""

    def pending(self, host: Host) -> str:
        """Return what remains to be done, for people; empty if nothing does. Changes nothing."""

    def apply(self, host: Host) -> None:
        """Apply the step. Raises OSError or ConfigurationError."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that exists."""

    path: Path
    mode: int = 0o755
    #: Name of its user and group; empty for the user that applies the plan.
    owner: str = ""

    def pending(self, host: Host) -> str:
        """Compare the folder with the plan."""
        if not self.path.is_dir():
            return f"create the folder {self.path}"
        right = self.path.stat().st_mode & 0o777 == self.mode and host.owned(self.path, self.owner)
        return "" if right else f"correct owner and mode of {self.path}"

    def apply(self, host: Host) -> None:
        """Create the folder, with its owner and mode."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(self.mode)
        host.own(self.path, self.owner)


@dataclass(frozen=True, slots=True)
class File:
    """A file with a content."""

    path: Path
    content: str
    mode: int = 0o644
    owner: str = ""
    #: Whether a file that exists stays as it is: it belongs to the operator.
    keep: bool = False
    #: Content of the previous plan: a kept file that still has it was not edited, and gets the new content.
    previous: str = ""

    def pending(self, host: Host) -> str:
        """Compare the file with the plan."""
        if not self.path.is_file():
            return f"write {self.path}"
        found = self.path.read_text(encoding="utf-8")
        if self.keep and (not self.previous or found != self.previous):
            return ""
        if found != self.content:
            return f"change {self.path}"
        if self.keep:
            return ""
        right = self.path.stat().st_mode & 0o777 == self.mode and host.owned(self.path, self.owner)
        return "" if right else f"correct owner and mode of {self.path}"

    def apply(self, host: Host) -> None:
        """Replace the file as a whole."""
        replace_file(self.path, self.content, self.mode, self.owner, host)


@dataclass(frozen=True, slots=True)
class Address:
    """The address of the orchestrator in a JSON file of the operator. Other addresses and members of it stay."""

    path: Path
    #: The address by the previous plan.
    previous: str
    #: The address by this plan.
    current: str

    def _changed(self) -> str:
        """Return the file with the new address; empty if it stays as it is."""
        if self.previous == self.current or not self.path.is_file():
            return ""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            addresses = found["address"].split(",")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ConfigurationError(f"cannot change the address in {self.path}: {error!r}") from None
        if self.previous not in addresses:
            return ""
        found["address"] = ",".join(self.current if item == self.previous else item for item in addresses)
        return json.dumps(found, indent=2, ensure_ascii=False) + "\n"

    def pending(self, host: Host) -> str:
        """Compare the address with the plan."""
        return f"change the address in {self.path} to {self.current}" if self._changed() else ""

    def apply(self, host: Host) -> None:
        """Replace the file as a whole."""
        replace_file(self.path, self._changed(), self.path.stat().st_mode & 0o777, "", host)


@dataclass(frozen=True, slots=True)
class Secret:
    """A file with a random password of 256 bits, which is generated once."""

    path: Path
    owner: str = ""
    #: Text before the password, such as a user's name and a colon.
    before: str = ""

    def pending(self, host: Host) -> str:
        """Compare the file with the plan."""
        if not self.path.is_file():
            return f"generate the password {self.path}"
        return "" if host.owned(self.path, self.owner) else f"correct the owner of {self.path}"

    def apply(self, host: Host) -> None:
        """Generate the password, or give the file to its owner."""
        if self.path.is_file():
            host.own(self.path, self.owner)
            return
        replace_file(self.path, f"{self.before}{secrets.token_hex(32)}\n", 0o600, self.owner, host)


def replace_file(path: Path, content: str, mode: int, owner: str, host: Host) -> None:
    """Replace a file as a whole. Nobody else can read it before it has its owner and mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
        host.own(temporary, owner)
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _run(*argv: str, given: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(argv, input=given, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(f"cannot run {' '.join(argv)}: {error}") from None


def _checked(*argv: str, given: str = "") -> None:
    done = _run(*argv, given=given)
    if done.returncode:
        raise ConfigurationError(f"{' '.join(argv)} failed: {done.stderr.strip()[:500]}")


@dataclass(frozen=True, slots=True)
class Accounts:
    """System accounts, as sysusers.d(5) describes them."""

    names: tuple[str, ...]
    #: Text of a file of sysusers.d(5) that describes them.
    text: str

    def pending(self, host: Host) -> str:
        """Return the missing accounts, in words; empty if none is missing, or if files get no owners."""
        if not host.owners:
            return ""
        # Imported here: Python has it on Unix only.
        import pwd

        known = {entry.pw_name for entry in pwd.getpwall()}
        missing = [name for name in self.names if name not in known]
        return f"create the accounts {', '.join(missing)}" if missing else ""

    def apply(self, host: Host) -> None:
        """Create the accounts with systemd-sysusers(8)."""
        _checked("systemd-sysusers", "-", given=self.text)


@dataclass(frozen=True, slots=True)
class UnitFile:
    """A file of systemd, which a Debian package may have installed already."""

    #: The file of the plan. systemd prefers it to that of a package.
    path: Path
    content: str
    #: The file of a package.
    package: Path

    @property
    def _packaged(self) -> bool:
        """True if a package contains the same file. A second file would hide the package's next version."""
        return self.package.is_file() and self.package.read_text(encoding="utf-8") == self.content

    def pending(self, host: Host) -> str:
        """Compare the file with the package and with the plan."""
        if self._packaged:
            return f"remove {self.path}, since {self.package} is the same" if self.path.is_file() else ""
        return File(self.path, self.content).pending(host)

    def apply(self, host: Host) -> None:
        """Replace the file as a whole, or remove it."""
        if self._packaged:
            self.path.unlink()
        else:
            File(self.path, self.content).apply(host)


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of systemd, with everything that it reads only at its start."""

    name: str
    #: Contents that the plan writes, and files of the operator; a missing file counts as an empty one. Empty for a unit
    #: that is restarted only for a new unit file.
    reads: tuple[str | Path, ...] = ()

    def digest(self) -> str:
        """Return a digest of what it reads; empty if it reads nothing."""
        if not self.reads:
            return ""
        contents = [item.encode() if isinstance(item, str) else _content(item) for item in self.reads]
        return hashlib.sha256(b"".join(b"%d:%b" % (len(content), content) for content in contents)).hexdigest()


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


@dataclass(frozen=True, slots=True)
class Units:
    """Units of systemd that are enabled, and run with their current files."""

    units: tuple[Unit, ...]
    #: File with the digest of what each unit read at its last start by a plan.
    started: Path

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the units."""
        return tuple(unit.name for unit in self.units)

    def commands(self) -> list[str]:
        """Return the commands, for a host where they are left to the operator."""
        return ["systemctl daemon-reload", f"systemctl enable --now {' '.join(self.names)}"]

    def pending(self, host: Host) -> str:
        """Return the units that do not run, or run with older files."""
        if not host.services:
            return ""
        old = self._outdated()
        missing = [name for name in self.names if name not in old and not self._runs(name)]
        words = [f"restart {', '.join(old)}"] if old else []
        words += [f"enable and start {', '.join(missing)}"] if missing else []
        return "; ".join(words)

    def apply(self, host: Host) -> None:
        """Read the unit files, restart the units that run with older files, enable and start the others."""
        old = self._outdated()
        _checked("systemctl", "daemon-reload")
        if old:
            _checked("systemctl", "restart", *old)
        _checked("systemctl", "enable", "--now", *self.names)
        # Last: after a failure the next setup restarts them.
        digests = {**self._started(), **{unit.name: unit.digest() for unit in self.units}}
        replace_file(self.started, json.dumps(digests, indent=2) + "\n", 0o644, "", host)

    def _outdated(self) -> list[str]:
        """Return the units that run with older files."""
        started = self._started()
        return [
            unit.name
            for unit in self.units
            if (self._is_stale(unit.name) or unit.digest() not in ("", started.get(unit.name)))
            and self._runs(unit.name)
        ]

    def _started(self) -> dict[str, str]:
        try:
            return dict(json.loads(self.started.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            # Without a record the units are restarted once.
            return {}

    @staticmethod
    def _is_stale(name: str) -> bool:
        return _run("systemctl", "show", "-p", "NeedDaemonReload", "--value", name).stdout.strip() == "yes"

    @staticmethod
    def _runs(name: str) -> bool:
        active = _run("systemctl", "is-active", "--quiet", name).returncode == 0
        return active and _run("systemctl", "is-enabled", "--quiet", name).returncode == 0


def pending(steps: Iterable[Step], host: Host) -> Iterator[tuple[Step, str]]:
    """Yield the steps that remain, with what is to be done. Changes nothing."""
    for step in steps:
        try:
            words = step.pending(host)
        except OSError as error:
            raise ConfigurationError(f"cannot look at this host: {error}; run it as root") from None
        if words:
            yield step, words


def apply(steps: Iterable[Step], host: Host) -> Iterator[str]:
    """Apply the remaining steps in order, and yield a description of each.

    Raises:
        ConfigurationError: a step failed. Those before it stay, and the next application continues there.
    """
    for step in steps:
        try:
            words = step.pending(host)
            if words:
                step.apply(host)
        except OSError as error:
            raise ConfigurationError(f"cannot set up this host: {error}") from None
        if words:
            yield words
