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
from tachikoma_worker.confinement.isolation.abilities import NO_SIGNAL_SCOPE, Abilities
from tachikoma_worker.confinement.isolation.dynamic_users import DynamicUsers
from tachikoma_worker.confinement.isolation.enclosure import OPEN, Enclosure
from tachikoma_worker.confinement.refusals import Refused
from tachikoma_worker.settings import WorkerSettings

__all__ = ["Enclosures", "level_of"]

#: Folder of the requesters' temporary folders, in the agent's data folder.
TMP_FOLDER = "tmp"
#: Folders outside /run with sockets of services that act for any process of root, none of which may be there.
HOST_SERVICES = (
    "/var/lib/lxd", "/var/snap/lxd", "/var/lib/incus", "/var/lib/sss/pipes", "/var/spool/postfix/private",
    "/var/spool/postfix/public", "/var/lib/rancher", "/var/lib/kubelet",
)  # fmt: skip
#: What a command of root without hostAccess still reaches: Landlock before ABI 9 restricts no connections to a path.
OPEN_SOCKETS = "sockets of services in other folders than /run and the temporary ones"
#: Patterns of folders with files of many programs, which are never covered as a whole.
_COMMON_FOLDERS = (
    "/*", "/home/*", "/usr/*", "/usr/local/*", "/var/*", "/etc/ssl", "/etc/ssl/*", "/etc/pki", "/etc/pki/*",
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
        places = _places_of_secrets(settings)
        self._secrets = tuple(_masks_over(places))
        #: Files that are covered themselves, which ends when the host replaces them.
        self._replaceable = tuple(str(path) for path in sorted(places) if _stands_alone(path))
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
        closed = user.uid == 0 and not order.host_access
        if closed and self._abilities.read_only:
            raise Refused(_needs_host_access(self._abilities.read_only))
        if closed:
            # Other processes of root would be in its reach at `shared`.
            level = strictest(level, Isolation.PRIVATE) or level
        if level is Isolation.SHARED:
            return self._with_host_access() if user.uid == 0 else OPEN
        if why := self._abilities.levels.get(level):
            raise Refused(f"this agent cannot isolate commands at {level}: {why}")
        scope = order.grant.tmp or TmpScope.REQUESTER
        return Enclosure(
            level=level,
            masked=True,
            cgroup_files=not self._abilities.cgroup_files,
            read_only=closed,
            scoped=not self._abilities.scopes,
            masks=(*self._secrets, *HOST_SERVICES) if closed else self._secrets,
            tmp=scope,
            tmp_folder=self._tmp_folder(order.sub) if scope is TmpScope.REQUESTER else "",
            tmp_bytes=self.settings.tmp_bytes,
            tmp_inodes=self.settings.tmp_inodes,
            passwd=self.users.passwd_of(user) if user.dynamic else "",
            host_access=user.uid == 0 and order.host_access,
            missing=tuple(self._missing(level, closed=closed, root=user.uid == 0)),
        )

    def unused(self) -> list[str]:
        """Return the requesters' temporary folders that were not used for the agent's `tmp_age`."""
        now, age = time.monotonic(), self.settings.tmp_age.total_seconds()
        try:
            present = [str(path) for path in self._tmp.iterdir()]
        except OSError:
            return []
        return [path for path in present if now - self._used.setdefault(path, now) >= age]

    def _with_host_access(self) -> Enclosure:
        """Return the isolation of a command of root at `shared`, which policy lets change the host."""
        if why := self._abilities.masks:
            return Enclosure(host_access=True, missing=(f"agent files and processes: {why}",))
        return Enclosure(
            masked=True, cgroup_files=not self._abilities.cgroup_files, scoped=not self._abilities.scopes,
            masks=self._secrets, host_access=True,
            missing=tuple(self._missing(Isolation.SHARED, closed=False, root=True)),
        )  # fmt: skip

    def _missing(self, level: Isolation, *, closed: bool, root: bool) -> Iterator[str]:
        """Yield the parts that a command at a level lacks, for people."""
        if level is Isolation.PRIVATE and self._abilities.scopes:
            yield self._abilities.scopes
        if level is Isolation.SHARED and self._abilities.scopes:
            yield NO_SIGNAL_SCOPE
        if self._abilities.cgroup_files and not closed:
            yield self._abilities.cgroup_files
        if root:
            yield from (f"{path}, if the host replaces it meanwhile" for path in self._replaceable)
        if closed:
            yield OPEN_SOCKETS

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


def _places_of_secrets(settings: WorkerSettings) -> set[Path]:
    """Return the files and folders of the agent that no command may reach."""
    identity = str(settings.identity or os.environ.get("SPIFFE_ENDPOINT_SOCKET", ""))
    places = (
        settings.data, settings.spawner, identity.removeprefix("unix:"), settings.redis_password_file,
        settings.redis_key, settings.redis_certificate,
    )  # fmt: skip
    return {Path(os.path.realpath(place)) for place in places if place is not None and str(place).startswith("/")}


def _masks_over(places: set[Path]) -> Iterator[str]:
    """Yield the paths that are covered.

    A mask over a file ends when the host removes it or moves another one over it, so its folder is covered. A folder of
    many programs cannot be.
    """
    found = {path if path.is_dir() or _stands_alone(path) else path.parent for path in places} - {Path("/")}
    # A folder covers what is below it.
    for path in sorted(found):
        if not any(path.is_relative_to(other) for other in found - {path}):
            yield str(path)


def _stands_alone(path: Path) -> bool:
    """Return whether a path is that of a file in a folder of many programs."""
    folder = path.parent
    common = folder == Path("/") or any(folder.match(pattern) for pattern in _COMMON_FOLDERS)
    return common and not path.is_dir()
