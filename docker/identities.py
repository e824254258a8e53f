"""The identities of all parts in compose.yaml: X.509-SVIDs of a development CA, Redis passwords and Redis users.

    python identities.py AGENT...

Each part has a volume of its own and cannot see the volumes of the others. The program keeps running, and renews all
certificates when half of their life is over. All parts use new certificates without a restart, except Redis, whose
certificate lasts a month. Only for development: the key of the CA is in a volume.
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
#: Folders where compose.yaml mounts the volume of the CA, and those of all parts.
CA, PARTS = Path("/ca"), Path("/identities")
#: Volume of Redis's data. It must belong to Redis's user, whichever image it was created from.
REDIS_DATA = Path("/redis")
#: Folder where each part mounts its own volume.
OWN = Path("/run/tachikoma")
#: File whose existence shows the health check that all identities are issued.
ISSUED = Path("/tmp/issued")  # noqa: S108 (a container's own)
#: User ids in the images: of agents, of Redis, and of all other parts.
ROOT, REDIS, TACHIKOMA = 0, 10002, 10001
REDIS_LIFETIME = timedelta(days=30)


@contextmanager
def acting_as(user: int) -> Iterator[None]:
    """Act as another user while the block runs, so that files belong to their owner from the beginning."""
    os.setegid(user)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(ROOT)
        os.setegid(ROOT)


class Identities:
    """Issues the certificates and passwords of all parts."""

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
        """Write the certificate of a part into its volume, with its Redis passwords."""
        folder = PARTS / part
        passwords = {user: self.passwords.path(user).read_bytes() for user in redis_users}
        os.chown(folder, owner, owner)
        with acting_as(owner):
            self._ca.issue(spiffe_id, folder, dns_names=dns_names, lifetime=lifetime)
            for user, password in passwords.items():
                write_private(folder / f"{user}.password", password)

    def issue(self, agents: list[str]) -> None:
        """Issue the identities of all parts."""
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

        # With this password the developer can run `tachikoma redis check`.
        self.give("client", user_id(TRUST_DOMAIN, "developer"), redis_users=(CHECK,))
        with acting_as(TACHIKOMA):
            write_private(PARTS / "client" / "flower", viewers)
            profile = Profile(address="orchestrator:8534", server_name=SERVER_NAME, identity=OWN)
            profile.save(PARTS / "client" / "profile.json")

    @staticmethod
    def _viewers() -> bytes:
        """Return the file of Flower's users: the developer, with a password that is generated once."""
        file = CA / "flower"
        if not file.exists():
            write_private(file, f"developer:{secrets.token_urlsafe(16)}\n".encode())
        return file.read_bytes()


def main() -> None:
    """Issue all identities now, and again whenever half of their life is over."""
    os.chown(REDIS_DATA, REDIS, REDIS)
    while True:
        Identities().issue(sys.argv[1:])
        ISSUED.touch()
        time.sleep(SVID_LIFETIME.total_seconds() / 2)


if __name__ == "__main__":
    main()
