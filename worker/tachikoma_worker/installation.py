"""Installing an agent on this host: joining with a token, settings, units, and the wait until the agent is online."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tachikoma.client.membership.joining import join
from tachikoma.config.retry import Backoff
from tachikoma.errors import ConfigurationError, Unauthenticated, Unavailable
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.join_token import JoinToken, agent_of
from tachikoma.identity.spiffe import InvalidIdentity
from tachikoma.setup.layout import Layout
from tachikoma.setup.steps import Accounts, File, Folder, Host, Step, Unit, Units, apply
from tachikoma.streams.heartbeat import Heartbeat
from tachikoma_worker.engine.lease import read_lease
from tachikoma_worker.settings import PASSWORD_FILE, WorkerSettings

__all__ = ["Installation"]

#: Account of the worker.
ACCOUNT = "tachikoma-worker"
#: The units.
SPAWNER, WORKER = "tachikoma-spawner.service", "tachikoma-worker.service"
#: First and longest delay between two looks for the agent's lease.
LOOK_SECONDS = (0.2, 2.0)


@dataclass(frozen=True, slots=True)
class Installation:
    """An agent's installation on this host."""

    layout: Layout
    host: Host
    token: JoinToken
    #: URL of Redis; empty for the one that the orchestrator sends.
    redis_url: str = ""

    @property
    def agent(self) -> str:
        """Id of the agent."""
        return agent_of(self.token.spiffe_id)

    @property
    def data(self) -> Path:
        """Folder of the worker's data."""
        return self.layout.state("worker")

    @property
    def identity(self) -> Path:
        """Folder of the agent's identity."""
        return self.data / "identity"

    @property
    def environment(self) -> Path:
        """File with the settings of worker and spawner."""
        return self.layout.settings / "worker.env"

    def units(self, environment: str) -> Units:
        """Return the units of an agent, for a content of the file with its settings."""
        # A restart of the spawner would end all commands: only another unit file is a reason.
        worker = Unit(WORKER, (environment, self.layout.settings / "worker.local.env"))
        return Units((Unit(SPAWNER), worker), self.layout.settings / "worker.started.json")

    def before(self) -> list[Step]:
        """Return the steps before the host joins."""
        return [
            Folder(self.layout.settings),
            Accounts((ACCOUNT,), self.layout.accounts()),
            Folder(self.data, 0o700, ACCOUNT),
        ]

    def after(self, redis_url: str) -> list[Step]:
        """Return the steps after the host joined."""
        text = self.layout.environment(
            agent_id=self.agent, redis_url=redis_url, identity=str(self.identity), data=str(self.data)
        )
        return [
            File(self.environment, text),
            *(self.layout.unit(name) for name in (SPAWNER, WORKER)),
            self.units(text),
        ]

    def run(self) -> Iterator[str]:
        """Install the agent, and yield what was done. Safe to repeat, also with the used token.

        Raises:
            ConfigurationError: a step failed, or the URL of Redis is not known.
            Unauthenticated: the token is not accepted, and this host did not join with it before.
            TachikomaError: as `join` raises.
        """
        yield from apply(self.before(), self.host)
        redis_url = self._join() or self._known_url()
        yield f"{self.token.spiffe_id} in {self.identity}"
        for path in (self.identity, *self.identity.iterdir()):
            self.host.own(path, ACCOUNT)
        if not redis_url:
            raise ConfigurationError("the orchestrator does not say how agents reach Redis; give --redis-url")
        yield from apply(self.after(redis_url), self.host)

    def _join(self) -> str:
        """Join, unless this host did so with the token before. Return the URL of Redis; empty if it is not known."""
        try:
            answer = asyncio.run(join(self.token, self.identity, self.identity / PASSWORD_FILE))
        except Unauthenticated:
            if not self._joined():
                raise
            return self.redis_url
        return self.redis_url or answer.redis_url

    def _joined(self) -> bool:
        try:
            svid = FileSvidSource(self.identity).current()
            svid.verify()
        except (ConfigurationError, InvalidIdentity):
            return False
        return svid.spiffe_id == self.token.spiffe_id

    def _known_url(self) -> str:
        """Return the URL of Redis that the last installation wrote; empty if there was none."""
        if not self.environment.is_file():
            return ""
        lines = self.environment.read_text(encoding="utf-8").splitlines()
        return next((line.partition("=")[2] for line in lines if line.startswith("TACHIKOMA_REDIS_URL=")), "")

    def wait(self, seconds: float) -> Heartbeat:
        """Wait until the agent is online on this host.

        Args:
            seconds: longest wait.

        Raises:
            Unavailable: the agent did not come online in that time.
        """
        settings = WorkerSettings(
            agent_id=self.agent, redis_url=self._known_url(), identity=self.identity, data=self.data
        )
        deadline, backoff = time.monotonic() + seconds, Backoff(*LOOK_SECONDS)
        while True:
            try:
                return asyncio.run(read_lease(settings))
            except Unavailable as error:
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"{error}; look at: systemctl status {SPAWNER} {WORKER}; run: sudo tachikoma doctor worker"
                    ) from None
            time.sleep(backoff.advance())
