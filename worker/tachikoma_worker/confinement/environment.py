"""The environment of a command: what the agent sets, and what the request may add."""

from __future__ import annotations

from collections.abc import Mapping

from tachikoma.policy.hazards.environment import forbidden
from tachikoma.vocabulary.requests import Terminal
from tachikoma_worker.confinement.account import Account
from tachikoma_worker.confinement.refusals import Refused

__all__ = ["PATH", "environment"]

#: Search path of every command.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment(requested: Mapping[str, str], user: Account, terminal: Terminal | None = None) -> dict[str, str]:
    """Return the whole environment of a command. Nothing is inherited from the worker.

    Args:
        requested: variables in the request.
        user: the user that the command runs as.
        terminal: its terminal, or None.

    Raises:
        Refused: the request contains a variable that is never allowed.
    """
    for name, value in requested.items():
        if why := forbidden(name, value):
            raise Refused(f"environment: {why}")
    return {
        "LANG": "C.UTF-8",
        **requested,
        **({} if terminal is None else {"TERM": terminal.type}),
        "PATH": PATH,
        "HOME": user.home,
        "USER": user.name,
        "LOGNAME": user.name,
    }
