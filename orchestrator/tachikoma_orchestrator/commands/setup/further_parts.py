"""The further parts that an operator can choose for an orchestrator's host: submitter, beat and Flower."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tachikoma.errors import ConfigurationError
from tachikoma.setup.layout import Layout
from tachikoma.setup.steps import File, Folder, Secret, Step, Unit
from tachikoma_orchestrator.commands.setup.choices import Choices, Part

__all__ = ["FurtherParts"]

#: Address of Flower's web server, on this host.
FLOWER_ADDRESS = "127.0.0.1:5555"
SCHEDULES = """\
# When which commands run. A policy must grant each to spiffe://<trust domain>/schedule/<name>. Changes take effect by
# themselves; docs/schedules.md has all fields and examples.
schedules: []
"""


@dataclass(frozen=True, slots=True)
class FurtherParts:
    """The files and units of the chosen parts."""

    layout: Layout
    choices: Choices
    #: Folder of the passwords of Redis' users.
    passwords: Path

    @property
    def schedules(self) -> Path:
        """Folder of schedules."""
        return self.layout.settings / "schedules"

    @property
    def flower_users(self) -> Path:
        """File with the users of Flower."""
        return self.layout.settings / "flower.users"

    def accounts(self) -> dict[Part, str]:
        """Return the accounts of the chosen parts that have one of their own; the submitter has the orchestrator's."""
        return {part: f"tachikoma-{part}" for part in self.choices.parts if part is not Part.SUBMITTER}

    def identity(self, part: Part) -> Path:
        """Return the folder of a part's identity, with which it connects to Redis."""
        return self.layout.state(part) / "identity"

    def check(self) -> None:
        """Check that the programs of the chosen parts are installed.

        Raises:
            ConfigurationError: Flower is not.
        """
        if Part.FLOWER in self.choices.parts and find_spec("flower") is None:
            raise ConfigurationError("setup: Flower is not installed: pip install 'tachikoma-exec[flower]'")

    def steps(self) -> Iterator[Step]:
        """Yield the files of the chosen parts."""
        if self.choices.has_schedules:
            yield Folder(self.schedules, 0o755)
            yield File(self.schedules / "main.yaml", SCHEDULES, keep=True)
        if Part.FLOWER in self.choices.parts:
            yield Secret(self.flower_users, self.accounts()[Part.FLOWER], before=f"{self.choices.operator}:")
        for part in self.accounts():
            yield File(self.layout.settings / f"{part}.env", self._environment(part))

    def units(self, orchestrator: str) -> Iterator[Unit]:
        """Yield the units of the chosen parts.

        Args:
            orchestrator: the environment file of the orchestrator, which the submitter reads too.
        """
        for part in self.choices.parts:
            if part is Part.SUBMITTER:
                file, environment = "orchestrator", orchestrator
            else:
                file, environment = str(part), self._environment(part)
            name = self.unit(part)
            local = self.layout.settings / f"{file}.local.env"
            yield Unit(name, (self.layout.unit(name).content, environment, local))

    @staticmethod
    def unit(part: Part) -> str:
        """Return the name of a part's unit."""
        return f"tachikoma-{part}.service"

    def _environment(self, part: Part) -> str:
        return self.layout.environment(
            redis_url=self.choices.reached_redis,
            redis_password_file=str(self.passwords / part),
            identity=str(self.identity(part)),
            schedules=str(self.schedules) if part is Part.BEAT else "",
            flower_users=str(self.flower_users) if part is Part.FLOWER else "",
            flower_listen=FLOWER_ADDRESS if part is Part.FLOWER else "",
        )

    def notices(self) -> Iterator[str]:
        """Yield what the operator is told of these parts."""
        if Part.BEAT in self.choices.parts:
            yield f"write schedules into {self.schedules} (docs/schedules.md); changes take effect by themselves"
        if Part.FLOWER in self.choices.parts:
            yield f"Flower: http://{FLOWER_ADDRESS} on this host, user and password in {self.flower_users}"
        for part in Part:
            environment = self.layout.settings / f"{part}.env"
            if part not in self.choices.parts and environment.is_file():
                yield f"no longer used: systemctl disable --now tachikoma-{part}; rm {environment}"
