"""The X.509-SVIDs of a stack, issued by its own certificate authority."""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Sequence

from tachikoma.dev.ca import SVID_LIFETIME, DevelopmentCA
from tachikoma.dev.folder import REDIS_HOST, SERVER_NAME, TRUST_DOMAIN, StackFolder
from tachikoma.identity.spiffe import SpiffeId, agent_id, service_id, user_id

__all__ = ["Identities", "own_user"]


def own_user() -> str:
    """Return the login name, with characters that a SPIFFE ID cannot contain replaced by hyphens."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = str(os.getuid())
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name)


class Identities:
    """The identities of a stack's parts and of its user."""

    def __init__(self, folder: StackFolder, *, services: Sequence[str], agents: Sequence[str]) -> None:
        """Prepare identities; nothing is issued yet.

        Args:
            folder: the stack's folder.
            services: the services, by the last part of their SPIFFE IDs.
            agents: ids of the agents.
        """
        self._folder = folder
        self._services = services
        self._agents = agents
        #: The SPIFFE ID of this user.
        self.user = user_id(TRUST_DOMAIN, own_user())
        #: Time of the last issue, by the monotonic clock.
        self._issued = 0.0

    def issue_all(self) -> None:
        """Issue new identities for all; running parts load theirs within a second."""
        ca = self._ca()
        ca.issue(self.user, self._folder.identity("user"))
        for name in self._services:
            dns_names = {"orchestrator": (SERVER_NAME,), "redis": (REDIS_HOST,)}.get(name, ())
            ca.issue(service_id(TRUST_DOMAIN, name), self._folder.identity(name), dns_names=dns_names)
        for agent in self._agents:
            ca.issue(agent_id(TRUST_DOMAIN, agent), self._folder.identity(agent))
        self._issued = time.monotonic()

    def renew(self) -> None:
        """Issue new identities when half of the lifetime is over."""
        if time.monotonic() - self._issued > SVID_LIFETIME.total_seconds() / 2:
            self.issue_all()

    def issue(self, spiffe_id: SpiffeId, name: str) -> None:
        """Issue one more identity, into the folder of a name."""
        self._ca().issue(spiffe_id, self._folder.identity(name))

    def _ca(self) -> DevelopmentCA:
        return DevelopmentCA(self._folder.ca, TRUST_DOMAIN)
