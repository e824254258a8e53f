"""The choice of isolation for each command of an agent, by its order, the agent's settings and its host."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from tachikoma.identity.signed_messages import WorkOrder
from tachikoma.vocabulary.isolation import Isolation, TmpScope, strictest
from tachikoma_worker.confinement.account import Account
from tachikoma_worker.confinement.isolation.abilities import Abilities
from tachikoma_worker.confinement.isolation.dynamic_users import DynamicUsers
from tachikoma_worker.confinement.isolation.enclosure import OPEN, Enclosure
from tachikoma_worker.confinement.refusals import Refused
from tachikoma_worker.settings import WorkerSettings

__all__ = ["Enclosures", "level_of"]

#: Folder of the requesters' temporary folders, in the agent's data folder.
TMP_FOLDER = "tmp"
#: Sockets and folders through which services of a host act for any process of root, none of which may be there.
HOST_SERVICES = (
    "/run/docker.sock", "/run/containerd", "/run/podman", "/run/crio", "/run/lxd.socket", "/run/snapd.socket",
    "/run/libvirt", "/run/dbus", "/run/systemd/private", "/run/systemd/io.system.ManagedOOM", "/run/udev/control",
    "/run/systemd/journal/dev-log", "/run/initctl", "/run/acpid.socket", "/var/lib/lxd", "/var/snap/lxd",
)  # fmt: skip


def level_of(order: WorkOrder, settings: WorkerSettings) -> Isolation:
    """Return the level of an order: the strongest of policy, request and agent."""
    floor = Isolation(settings.isolation)
    return strictest(order.grant.isolation, order.request.isolation, floor) or floor


class Enclosures:
    """The isolation of an agent's commands. Its methods may be called from any thread."""

    def __init__(self, settings: WorkerSettings, abilities: Abilities) -> None:
        #: Settings of the worker.
        self.settings = settings
        self._abilities = abilities
        self._secrets = tuple(_secret_paths(settings))
        self.users = DynamicUsers(settings.data, settings.uid_range)
        #: When each requester's temporary folder was used last, by CLOCK_MONOTONIC.
        self._used: dict[str, float] = {}
        self._tmp = settings.data / TMP_FOLDER

    def possible(self) -> tuple[str, ...]:
        """Return the levels that this host can enforce."""
        return self._abilities.possible()

    def account(self, order: WorkOrder, spawner_uid: int) -> Account | None:
        """Return the requester's own user if the order names none and is isolated; None for a user of the host."""
        named = order.request.user or self.settings.user
        if named or spawner_uid != 0 or level_of(order, self.settings) is Isolation.SHARED:
            return None
        return self.users.of(order.sub)

    def of(self, order: WorkOrder, user: Account) -> Enclosure:
        """Return the isolation of a command.

        Args:
            order: the verified order, narrowed by the agent's own policy.
            user: the user that it runs as.

        Raises:
            Refused: this host cannot isolate it as far as policy, request or agent demand.
        """
        level = level_of(order, self.settings)
        if level is Isolation.SHARED:
            return self._of_root(order) if user.uid == 0 else OPEN
        if why := self._abilities.levels.get(level):
            raise Refused(f"this agent cannot isolate commands at {level}: {why}")
        scope = order.grant.tmp or TmpScope.REQUESTER
        closed = user.uid == 0 and not order.host_access
        if closed and self._abilities.read_only:
            raise Refused(_needs_host_access(self._abilities.read_only))
        scopes = self._abilities.scopes
        return Enclosure(
            level=level,
            masked=True,
            read_only=closed,
            scoped=not scopes,
            masks=self._masks(closed=closed),
            tmp=scope,
            tmp_folder=self._tmp_folder(order.sub) if scope is TmpScope.REQUESTER else "",
            tmp_bytes=self.settings.tmp_bytes,
            tmp_inodes=self.settings.tmp_inodes,
            passwd=self.users.passwd_of(user) if user.dynamic else "",
            host_access=user.uid == 0 and order.host_access,
            missing=(scopes,) if scopes else (),
        )

    def unused(self) -> list[str]:
        """Return the requesters' temporary folders that were not used for the agent's `tmp_age`."""
        now, age = time.monotonic(), self.settings.tmp_age.total_seconds()
        try:
            present = [str(path) for path in self._tmp.iterdir()]
        except OSError:
            return []
        return [path for path in present if now - self._used.setdefault(path, now) >= age]

    def _of_root(self, order: WorkOrder) -> Enclosure:
        """Return the isolation of a command of root at `shared`; raises as `of`."""
        if order.host_access and self._abilities.masks:
            return Enclosure(host_access=True, missing=(f"agent files: {self._abilities.masks}",))
        if order.host_access:
            return Enclosure(masked=True, masks=self._masks(closed=False), host_access=True)
        if self._abilities.read_only:
            raise Refused(_needs_host_access(self._abilities.read_only))
        scopes = self._abilities.scopes
        return Enclosure(
            masked=True, read_only=True, scoped=not scopes, masks=self._masks(closed=True),
            missing=(scopes,) if scopes else (),
        )  # fmt: skip

    def _masks(self, *, closed: bool) -> tuple[str, ...]:
        return (*self._secrets, *HOST_SERVICES) if closed else self._secrets

    def _tmp_folder(self, requester: str) -> str:
        """Return the folder of a requester's temporary folders, which the spawner makes when it is missing."""
        self._tmp.mkdir(mode=0o700, exist_ok=True)
        path = str(self._tmp / hashlib.sha256(requester.encode()).hexdigest()[:32])
        self._used[path] = time.monotonic()
        return path


def _needs_host_access(why: str) -> str:
    return (
        "commands of root are kept from the host, which is impossible here "
        f"({why}); set hostAccess in the policy to let this one reach the host, or name another user"
    )


def _secret_paths(settings: WorkerSettings) -> Iterator[str]:
    """Yield the files and folders of the agent that no command may reach."""
    identity = str(settings.identity or os.environ.get("SPIFFE_ENDPOINT_SOCKET", ""))
    places = (
        settings.data, settings.spawner, identity.removeprefix("unix:"), settings.redis_password_file,
        settings.redis_key, settings.redis_certificate,
    )  # fmt: skip
    found = {os.path.realpath(place) for place in places if place is not None and str(place).startswith("/")}
    # A folder covers what is below it.
    for path in sorted(found):
        if path != "/" and not any(Path(path).is_relative_to(other) for other in found - {path}):
            yield path
