"""Who everybody in compose.yaml is: X.509-SVIDs of a development CA, Redis passwords and the Redis users.

    python identities.py AGENT...

Each part finds its own in a volume of its own, and cannot see the others'. It stays, and issues certificates again when
half of their lifetime is over; all parts take them without a restart, except Redis, whose certificate lasts a month.
Only for development: the CA's key lies in a volume.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from tachikoma.client.profile import Profile
from tachikoma.dev.ca import SVID_LIFETIME, DevelopmentCA
from tachikoma.identity.files import write_private
from tachikoma.identity.spiffe import SpiffeId, agent_id, service_id, user_id
from tachikoma.redis.acl_file import acl_file
from tachikoma.redis.passwords import Passwords
from tachikoma.redis.users import BEAT, CHECK, FLOWER, ORCHESTRATOR, SERVICES, SUBMITTER, agent_user

TRUST_DOMAIN = "tachikoma.local"
SERVER_NAME = "orchestrator.tachikoma.local"
#: Where compose.yaml mounts the CA's volume, and those of all parts.
CA, PARTS = Path("/ca"), Path("/identities")
#: Redis's own volume, which is to be Redis's whatever image it comes from.
REDIS_DATA = Path("/redis")
#: Where each part finds its own volume.
OWN = Path("/run/tachikoma")
#: Tells the health check that everybody has what it needs.
ISSUED = Path("/tmp/issued")  # noqa: S108 (a container's own)
#: Users of the images: of agents, of Redis, and of the rest.
ROOT, REDIS, TACHIKOMA = 0, 10002, 10001
REDIS_LIFETIME = timedelta(days=30)


@contextmanager
def acting_as(user: int) -> Iterator[None]:
    """Write files as their owner, so that there is no moment at which it cannot read them."""
    os.setegid(user)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(ROOT)
        os.setegid(ROOT)


class Identities:
    """Gives each part its certificate and its password."""

    def __init__(self) -> None:
        self._ca = DevelopmentCA(CA, TRUST_DOMAIN)
        self.passwords = Passwords(CA / "redis")

    def give(
        self,
        part: str,
        spiffe_id: SpiffeId,
        *,
        owner: int = TACHIKOMA,
        redis_users: tuple[str, ...],
        dns_names: tuple[str, ...] = (),
        lifetime: timedelta = SVID_LIFETIME,
    ) -> None:
        """Issue a part's certificate into its volume, and put its Redis passwords beside it."""
        folder = PARTS / part
        passwords = {user: self.passwords.path(user).read_bytes() for user in redis_users}
        os.chown(folder, owner, owner)
        with acting_as(owner):
            self._ca.issue(spiffe_id, folder, dns_names=dns_names, lifetime=lifetime)
            for user, password in passwords.items():
                write_private(folder / f"{user}.password", password)

    def issue(self, agents: list[str]) -> None:
        """Give all of them theirs."""
        for user in (*SERVICES, *(agent_user(agent) for agent in agents)):
            self.passwords.make(user)
        users = acl_file(self.passwords).encode()

        self.give("redis", service_id(TRUST_DOMAIN, "redis"), owner=REDIS, redis_users=(CHECK,),
                  dns_names=("redis",), lifetime=REDIS_LIFETIME)  # fmt: skip
        with acting_as(REDIS):
            write_private(PARTS / "redis" / "users.acl", users)

        self.give("orchestrator", service_id(TRUST_DOMAIN, "orchestrator"), redis_users=(ORCHESTRATOR, SUBMITTER),
                  dns_names=(SERVER_NAME,))  # fmt: skip
        self.give("flower", service_id(TRUST_DOMAIN, "flower"), redis_users=(FLOWER,))
        viewers = self._viewers()
        with acting_as(TACHIKOMA):
            write_private(PARTS / "flower" / "viewers", viewers)
        self.give("beat", service_id(TRUST_DOMAIN, "beat"), redis_users=(BEAT,))
        for agent in agents:
            self.give(agent, agent_id(TRUST_DOMAIN, agent), owner=ROOT, redis_users=(agent_user(agent),))

        # The developer may see how Redis is set up: `tachikoma redis check`.
        self.give("client", user_id(TRUST_DOMAIN, "developer"), redis_users=(CHECK,))
        with acting_as(TACHIKOMA):
            write_private(PARTS / "client" / "flower", viewers)
            profile = Profile(address="orchestrator:8534", server_name=SERVER_NAME, identity=OWN)
            profile.save(PARTS / "client" / "profile.json")

    @staticmethod
    def _viewers() -> bytes:
        """Who may look at Flower: the developer, with a password that stays."""
        file = CA / "flower"
        if not file.exists():
            write_private(file, f"developer:{secrets.token_urlsafe(16)}\n".encode())
        return file.read_bytes()


def main() -> None:
    """Issue, and issue again."""
    os.chown(REDIS_DATA, REDIS, REDIS)
    while True:
        Identities().issue(sys.argv[1:])
        ISSUED.touch()
        time.sleep(SVID_LIFETIME.total_seconds() / 2)


if __name__ == "__main__":
    main()
