"""The settings of a part that systemd runs on this host: those of its unit, in the process of `doctor` and `config`.

An operator's shell has none of the part's variables, and root may read what the part's user may not. So the process
takes over the unit's environment, limit of open files and user, as systemd would set them (systemd.exec(5)).
"""

from __future__ import annotations

import os
import re
import resource
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tachikoma.config.settings import PREFIX, SETTINGS_VARIABLE, PartSettings, variable
from tachikoma.errors import ConfigurationError

__all__ = ["Installed", "find", "is_configured"]

#: Folders of units, the one that systemd prefers first.
UNIT_FOLDERS = (Path("/etc/systemd/system"), Path("/run/systemd/system"), Path("/usr/lib/systemd/system"))


@dataclass(frozen=True, slots=True)
class Installed:
    """A part's unit on this host."""

    #: Name of the unit.
    unit: str
    #: The part's account; empty for root.
    user: str
    #: Files of settings that the unit reads and that exist, in this order.
    files: tuple[Path, ...]
    #: The environment that systemd gives to the part.
    variables: Mapping[str, str]
    #: Largest number of open files; None if the unit sets none.
    open_files: int | None = None

    def __str__(self) -> str:
        """Return the origin of the settings, for people."""
        return f"{self.unit} ({', '.join(map(str, self.files))})"

    def enter(self) -> None:
        """Replace this process's settings by the unit's, and its limit of open files if this is root.

        The variables of this shell are removed: the part does not see them either.
        """
        for name in [name for name in os.environ if name.startswith(PREFIX)]:
            del os.environ[name]
        os.environ.update(self.variables)
        if self.open_files is not None and os.geteuid() == 0:
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (self.open_files, self.open_files))
            except ValueError:
                # Root without CAP_SYS_RESOURCE, as in a container, where systemd cannot raise the limit either.
                _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def become(self) -> None:
        """Continue as the unit's user, for good.

        Raises:
            ConfigurationError: this process is neither root nor that user, or there is no such user.
        """
        # Imported here: Python has it on Unix only.
        import pwd

        try:
            account = pwd.getpwnam(self.user or "root")
        except KeyError:
            raise ConfigurationError(
                f"{self.unit} runs as {self.user}, and this host has no such user; run: systemd-sysusers"
            ) from None
        if os.geteuid() == account.pw_uid:
            return
        if os.geteuid() != 0:
            raise ConfigurationError(f"{self.unit} runs as {account.pw_name}; repeat the command as root (sudo)")
        os.chdir("/")
        os.initgroups(account.pw_name, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)


def is_configured(kind: type[PartSettings]) -> bool:
    """Return True if the environment of this process has a setting of a part."""
    return SETTINGS_VARIABLE in os.environ or any(variable(kind, field) in os.environ for field in kind.model_fields)


def find(part: str) -> Installed | None:
    """Return the installation of a part on this host; None if it has no unit, or the unit's settings do not exist.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    name = f"tachikoma-{part}.service"
    try:
        return _read(name)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot read the settings of {name}: {error}; repeat the command as root") from None


def _read(name: str) -> Installed | None:
    """Read a unit and its files. Raises OSError, or ValueError for a text that systemd would not accept."""
    user, limit, variables, files = "", "", dict[str, str](), list[str]()
    texts = list(_unit_texts(name))
    for key, value in (pair for text in texts for pair in _assignments(text)):
        if key == "User":
            user = value
        elif key == "LimitNOFILE":
            limit = value
        elif key == "Environment":
            # An empty value removes the ones before it.
            variables = variables | dict(_pair(word) for word in shlex.split(value)) if value else {}
        elif key == "EnvironmentFile":
            files = [*files, value] if value else []
    found = []
    for file in files:
        path = Path(file.removeprefix("-"))
        if not path.is_file():
            if file.startswith("-"):
                continue
            return None
        # Files are stronger than the unit's own variables, and later ones than earlier ones.
        variables |= dict(_file_variables(path.read_text(encoding="utf-8")))
        found.append(path)
    if not found:
        return None
    return Installed(name, user, tuple(found), variables, _number(limit))


def _unit_texts(name: str) -> Iterator[str]:
    """Yield the text of a unit, and those of its drop-ins."""
    unit = next((folder / name for folder in UNIT_FOLDERS if (folder / name).is_file()), None)
    if unit is None:
        return
    yield unit.read_text(encoding="utf-8")
    # Of drop-ins with the same name, the preferred folder's counts.
    drop_ins = {file.name: file for folder in reversed(UNIT_FOLDERS) for file in (folder / f"{name}.d").glob("*.conf")}
    for file in sorted(drop_ins):
        yield drop_ins[file].read_text(encoding="utf-8")


def _assignments(text: str, join: str = " ") -> Iterator[tuple[str, str]]:
    """Yield names and values of the lines that are no comments; `join` replaces a backslash and the end of its line."""
    for line in text.replace("\\\n", join).splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and key[:1] not in ("#", ";"):
            yield key.strip(), value.strip()


def _pair(word: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    return name, value


def _file_variables(text: str) -> Iterator[tuple[str, str]]:
    """Yield the variables of an environment file. Without quotes, a value ends with its line."""
    for name, value in _assignments(text, ""):
        yield name, "".join(shlex.split(value)) if value[:1] in ("'", '"') else re.sub(r"\\(.)", r"\1", value)


def _number(limit: str) -> int | None:
    """Return the hard limit of `soft:hard` or of one number; None for none and for `infinity`."""
    last = limit.rpartition(":")[2]
    return int(last) if last.isdigit() else None
