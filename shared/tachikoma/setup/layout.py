"""The places of a host where the parts of an installation are, below a root folder."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from tachikoma.errors import ConfigurationError
from tachikoma.setup.steps import UnitFile

__all__ = ["Layout"]

#: Folders that the files of systemd name.
_PROGRAM, _SETTINGS, _STATE = "/opt/tachikoma/bin/tachikoma", "/etc/tachikoma", "/var/lib/tachikoma-"


@dataclass(frozen=True, slots=True)
class Layout:
    """Folders of an installation. With another root than `/`, also the content of files names paths below it."""

    root: Path = Path("/")

    @property
    def settings(self) -> Path:
        """Folder of settings."""
        return self.root / "etc/tachikoma"

    @property
    def units(self) -> Path:
        """Folder of systemd's units."""
        return self.root / "etc/systemd/system"

    def state(self, part: str) -> Path:
        """Return the folder of a part's data."""
        return self.root / f"var/lib/tachikoma-{part}"

    @property
    def home(self) -> Path:
        """Home of the user that runs this program."""
        return self.root / Path.home().relative_to("/")

    @staticmethod
    def program() -> Path:
        """Return the program `tachikoma` of this installation."""
        return Path(sys.prefix) / "bin/tachikoma"

    @staticmethod
    def _shipped(name: str) -> str:
        """Return a file that the wheel contains, or the source tree.

        Raises:
            ConfigurationError: there is no such file.
        """
        tree = Path(__file__).parents[3] / "packaging/systemd"
        for folder in (Path(sys.prefix) / "share/tachikoma/systemd", tree):
            if (folder / name).is_file():
                return (folder / name).read_text(encoding="utf-8")
        raise ConfigurationError(f"this installation has no file share/tachikoma/systemd/{name}")

    def _placed(self, text: str) -> str:
        """Return a text with the paths of this installation."""
        text = text.replace(_PROGRAM, str(self.program())).replace(_SETTINGS, str(self.settings))
        return text.replace(_STATE, str(self.state("")))

    def unit(self, name: str) -> UnitFile:
        """Return a unit."""
        package = self.root / "usr/lib/systemd/system" / name
        return UnitFile(self.units / name, self._placed(self._shipped(name)), package)

    def accounts(self) -> str:
        """Return the accounts of all parts, as sysusers.d(5) describes them."""
        return self._placed(self._shipped("sysusers.conf"))

    @staticmethod
    def environment(**variables: str) -> str:
        """Return the text of an environment file (systemd.exec(5)); variables without a value are left out."""
        lines = [f"TACHIKOMA_{name.upper()}={value}" for name, value in variables.items() if value]
        return "\n".join(["# Written by tachikoma: the next setup replaces it.", *lines]) + "\n"
