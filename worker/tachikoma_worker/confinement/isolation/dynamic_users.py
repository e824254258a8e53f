"""Users of requesters: numbers from a range that no user of the host has, one for each requester of an agent.

So what a command leaves on disk or in memory belongs to its requester alone. A number is never given to another
requester, because files of its user may be left.
"""

from __future__ import annotations

import json
import pwd
from pathlib import Path
from threading import Lock

from tachikoma.identity.files import write_private
from tachikoma_worker.confinement.account import Account
from tachikoma_worker.confinement.refusals import Refused

__all__ = ["DynamicUsers"]

#: Names of the table and of the folder with the files of users, in the agent's data folder.
TABLE = "users.json"
ACCOUNTS = "accounts"
#: Users of the host.
HOST_PASSWD = Path("/etc/passwd")


class DynamicUsers:
    """The users of an agent's requesters. Its methods may be called from any thread."""

    def __init__(self, data: Path, uid_range: str) -> None:
        """Prepare the users.

        Args:
            data: the agent's data folder.
            uid_range: first and last number of a user, such as `70000-79999`.
        """
        self._data = data
        first, last = (int(part) for part in uid_range.split("-"))
        self._range = range(first, last + 1)
        self._lock = Lock()
        self._known: dict[str, int] | None = None

    def of(self, requester: str) -> Account:
        """Return the user of a requester.

        Raises:
            Refused: no number is left, or the table cannot be read or written.
        """
        with self._lock:
            try:
                uid = self._uid_of(requester)
            except (OSError, ValueError) as error:
                raise Refused(f"the agent's table of users cannot be used: {error}") from error
        return Account(f"tachikoma{uid}", uid, uid, "/tmp", (), dynamic=True)  # noqa: S108 (its own, or the host's)

    def passwd_of(self, user: Account) -> str:
        """Return the path of a copy of /etc/passwd in which a user has a line.

        Raises:
            Refused: it cannot be written.
        """
        folder = self._data / ACCOUNTS
        path = folder / f"{user.uid}"
        line = f"{user.name}:x:{user.uid}:{user.gid}:requester of commands:{user.home}:/bin/sh\n"
        with self._lock:
            try:
                folder.mkdir(mode=0o700, exist_ok=True)
                text = HOST_PASSWD.read_text(errors="surrogateescape")
                wanted = (text if text.endswith("\n") or not text else f"{text}\n") + line
                if not path.exists() or path.read_text(errors="surrogateescape") != wanted:
                    write_private(path, wanted.encode(errors="surrogateescape"))
                    path.chmod(0o644)
            except OSError as error:
                raise Refused(f"cannot give the requester a user: {error}") from error
        return str(path)

    def _uid_of(self, requester: str) -> int:
        table = self._data / TABLE
        if self._known is None:
            self._known = json.loads(table.read_text()) if table.exists() else {}
        known = self._known.get(requester)
        if known is not None:
            return known
        taken = set(self._known.values())
        for uid in self._range:
            if uid not in taken and not _belongs_to_the_host(uid):
                wanted = {**self._known, requester: uid}
                write_private(table, json.dumps(wanted).encode())
                self._known = wanted
                return uid
        raise Refused(
            f"all {len(self._range)} users for requesters are in use; extend the agent's setting uid_range, "
            "or name a user in the request"
        )


def _belongs_to_the_host(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True
