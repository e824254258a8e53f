"""The plan of an orchestrator's host: every file, account, certificate and unit, from the operator's choices."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from tachikoma.identity.join_token import JOINED_FILE, Joined
from tachikoma.identity.spiffe import service_id, user_id
from tachikoma.redis.users import ENROLLER, ORCHESTRATOR, SERVICES, SUBMITTER
from tachikoma.setup.certificates import Authority, Issued, Root
from tachikoma.setup.layout import Layout
from tachikoma.setup.steps import Accounts, Address, File, Folder, Secret, Step, Unit, UnitFile, Units
from tachikoma_orchestrator.commands.setup.choices import Choices
from tachikoma_orchestrator.commands.setup.further_parts import FurtherParts
from tachikoma_orchestrator.commands.setup.redis_steps import LoadedCertificate, RedisUsers, configuration

__all__ = ["OrchestratorPlan"]

#: Accounts of the parts.
ORCHESTRATOR_ACCOUNT, REDIS_ACCOUNT = "tachikoma-orchestrator", "tachikoma-redis"
#: Lifetimes of the root, of the authority below it, and of certificates.
ROOT_LIFETIME, AUTHORITY_LIFETIME = timedelta(days=3650), timedelta(days=365)
LIFETIME, USER_LIFETIME, REDIS_LIFETIME = timedelta(hours=24), timedelta(days=7), timedelta(days=30)
#: Lifetime of the certificates of beat and Flower, which a timer renews.
PART_LIFETIME = timedelta(days=30)

POLICY = """\
# Who may run which commands where. Changes take effect within a second. `tachikoma policy check {path}` reports
# mistakes; docs/policy.md has all fields and examples.
operators: ["{operator}"]
policies:
  - name: look
    subjects: ["{operator}"]
    agents: ["**"]
    allowedCommands: [/usr/bin/uname ..., /usr/bin/uptime ..., /usr/bin/df ..., /usr/bin/free ..., /usr/bin/id ...]
    # Commands of different requesters do not reach each other (docs/isolation.md).
    isolation: private
"""


@dataclass(frozen=True, slots=True)
class OrchestratorPlan:
    """The steps of an orchestrator's host."""

    layout: Layout
    choices: Choices
    #: Whether Redis confirms that data is on disk (WAITAOF).
    durable: bool
    #: Program of the Redis server.
    redis_server: str = "/usr/bin/redis-server"
    #: Choices of the last setup that was completed; None if there was none.
    previous: Choices | None = None

    @property
    def choices_file(self) -> Path:
        """The file that stores the choices."""
        return self.layout.settings / "setup.toml"

    @property
    def _root(self) -> Path:
        return self.layout.settings / "root-ca"

    @property
    def _ca(self) -> Path:
        return self.layout.settings / "ca"

    @property
    def _roots(self) -> Path:
        """File with the certificates of the trusted roots. It stays when the operator moves the root away."""
        return self.layout.settings / "roots.pem"

    def authority(self) -> Authority:
        """Return the step of the authority that issues all certificates."""
        return Authority(self._ca, self.choices.trust_domain, AUTHORITY_LIFETIME, self._root, ORCHESTRATOR_ACCOUNT)

    @property
    def _passwords(self) -> Path:
        return self.layout.settings / "redis"

    @property
    def identity(self) -> Path:
        """Folder of the orchestrator's identity."""
        return self.layout.state("orchestrator") / "identity"

    @property
    def _redis_identity(self) -> Path:
        return self.layout.state("redis") / "identity"

    @property
    def _user_identity(self) -> Path:
        return self.layout.home / ".local/share/tachikoma/identities" / self.choices.trust_domain

    @property
    def policy(self) -> Path:
        """The first file of policies."""
        return self.layout.settings / "policy/main.yaml"

    @property
    def further(self) -> FurtherParts:
        """The further parts of this host."""
        return FurtherParts(self.layout, self.choices, self._passwords)

    @property
    def redis_conf(self) -> Path:
        """Configuration of the Redis on this host."""
        return self.layout.settings / "redis.conf"

    @property
    def operator_id(self) -> str:
        """SPIFFE ID of the operator."""
        return str(user_id(self.choices.trust_domain, self.choices.operator))

    def moved(self) -> list[tuple[str, str]]:
        """Return the addresses that members use and that this plan changes, each with the new one."""
        before, now = self.previous or self.choices, self.choices
        pairs = [(before.address, now.address), (before.reached_redis, now.reached_redis)]
        return [(old, new) for old, new in pairs if old != new]

    def lacks_operator(self) -> bool:
        """Return True if this plan has another operator than the previous one, and no policy file contains the ID."""
        if self.previous is None or self.previous.operator == self.choices.operator:
            return False
        files = [path for path in self.policy.parent.rglob("*") if path.is_file()]
        return not any(self.operator_id in path.read_text(encoding="utf-8", errors="replace") for path in files)

    def _joined(self) -> Joined:
        return Joined(address=self.choices.address, server_name=self.choices.server_name)

    def units(self) -> Units:
        """Return the units that run on this host, with everything that they read at their start."""
        local = self.layout.settings / "orchestrator.local.env"
        unit = self.layout.unit
        orchestrator, renewal = "tachikoma-orchestrator.service", "tachikoma-renewal.timer"
        units = [
            Unit(orchestrator, (unit(orchestrator).content, self._environment(), local)),
            Unit(renewal, (unit(renewal).content,)),
        ]
        if self.choices.own_redis:
            redis = self._redis_unit()
            # With another name of the host it needs another certificate, with which others reach it by that name.
            units.insert(0, Unit(redis.path.name, (redis.content, self._configuration(), self.choices.host)))
        units += self.further.units(self._environment())
        return Units(tuple(units), self.layout.settings / "started.json")

    def steps(self) -> list[Step]:
        """Return all steps, in order."""
        return [
            Folder(self.layout.settings, 0o755),
            Accounts((ORCHESTRATOR_ACCOUNT, REDIS_ACCOUNT, *self.further.accounts().values()), self.layout.accounts()),
            *self.certificates(),
            *self._redis(),
            *self._orchestrator(),
            *self.further.steps(),
            *self._unit_files(),
            # After the files that depend on the previous choices.
            File(self.choices_file, self.choices.text()),
            self.units(),
        ]

    def certificates(self) -> list[Step]:
        """Return the steps that create authorities and certificates, which the timer repeats."""
        domain, choices = self.choices.trust_domain, self.choices
        steps: list[Step] = [
            Root(self._root, self._roots, domain, ROOT_LIFETIME, self._ca),
            self.authority(),
            self._issued(
                self.identity, str(service_id(domain, "orchestrator")), LIFETIME, (choices.server_name,),
                ORCHESTRATOR_ACCOUNT,
            ),
            self._issued(
                self._user_identity, self.operator_id, USER_LIFETIME, joined=self._joined(),
            ),
        ]  # fmt: skip
        if choices.own_redis:
            steps += [
                Folder(self.layout.state("redis"), 0o700, REDIS_ACCOUNT),
                self._issued(
                    self._redis_identity, str(service_id(domain, "redis")), REDIS_LIFETIME, (choices.host,),
                    REDIS_ACCOUNT,
                ),
                LoadedCertificate(choices.host, choices.redis_port, self._redis_identity, self._passwords / "admin"),
            ]  # fmt: skip
        for part, account in self.further.accounts().items():
            identity = self.further.identity(part)
            steps += [
                Folder(identity.parent, 0o700, account),
                self._issued(identity, str(service_id(domain, part)), PART_LIFETIME, owner=account),
            ]
        return steps

    def _issued(
        self, folder: Path, spiffe_id: str, lifetime: timedelta, dns: tuple[str, ...] = (), owner: str = "",
        joined: Joined | None = None,
    ) -> Issued:  # fmt: skip
        return Issued(folder, spiffe_id, self._ca, self._roots, lifetime, dns, owner, joined)

    def _redis(self) -> Iterator[Step]:
        """Yield the passwords of all users of Redis, and the server on this host."""
        # The parts read their own passwords in it; nobody else can list it.
        yield Folder(self._passwords, 0o711)
        # A further part's user of Redis has its name.
        owners = dict.fromkeys((ORCHESTRATOR, SUBMITTER, ENROLLER), ORCHESTRATOR_ACCOUNT) | {
            str(part): account for part, account in self.further.accounts().items()
        }
        for user in (*SERVICES, ENROLLER):
            yield Secret(self._passwords / user, owners.get(user, ""))
        yield RedisUsers(self._acl, self._passwords, REDIS_ACCOUNT if self.choices.own_redis else "")
        if self.choices.own_redis:
            yield File(self.redis_conf, self._configuration())

    @property
    def _acl(self) -> Path:
        return (self.layout.state("redis") if self.choices.own_redis else self.layout.settings) / "users.acl"

    def _configuration(self) -> str:
        return configuration(
            data=self.layout.state("redis"), acl=self._acl, identity=self._redis_identity, bind=self.choices.bind,
            port=self.choices.redis_port, durable=self.durable,
        )  # fmt: skip

    def _orchestrator(self) -> Iterator[Step]:
        """Yield policy, settings and folders of the orchestrator, and the profile of its operator."""
        choices, settings = self.choices, self.layout.settings
        previous = self.previous or choices
        yield Folder(self.policy.parent, 0o755)
        before = self._policy(str(user_id(previous.trust_domain, previous.operator)))
        yield File(self.policy, self._policy(self.operator_id), keep=True, previous=before)
        yield Folder(self.layout.state("orchestrator"), 0o700, ORCHESTRATOR_ACCOUNT)
        yield Folder(self.layout.state("orchestrator") / "audit", 0o700, ORCHESTRATOR_ACCOUNT)
        yield File(settings / "orchestrator.env", self._environment())
        # As `tachikoma.client.profile.Profile` reads it.
        profile = {"address": choices.address, "serverName": choices.server_name, "identity": str(self._user_identity)}
        path = self.layout.home / ".config/tachikoma/profile.json"
        yield File(path, json.dumps(profile, indent=2) + "\n", keep=True)
        for file in (path, self._user_identity / JOINED_FILE):
            yield Address(file, previous.address, choices.address)

    def _policy(self, operator: str) -> str:
        return POLICY.format(operator=operator, path=self.policy.parent)

    def _environment(self) -> str:
        choices = self.choices
        return self.layout.environment(
            redis_url=choices.reached_redis,
            redis_password_file=str(self._passwords / ORCHESTRATOR),
            identity=str(self.identity),
            policy=str(self.policy.parent),
            schedules=str(self.further.schedules) if choices.has_schedules else "",
            listen=f"{choices.bind}:{choices.port}",
            renew_address=choices.address,
            ca=str(self._ca),
            join_listen=f"{choices.bind}:{choices.join_port}",
            join_address=f"{choices.host}:{choices.join_port}",
            enroller_password_file=str(self._passwords / ENROLLER),
            submitter_password_file=str(self._passwords / SUBMITTER),
            audit_log=str(self.layout.state("orchestrator") / "audit/audit.jsonl"),
            audit_durable="" if self.durable else "false",
        )

    def _unit_files(self) -> Iterator[Step]:
        names = ["tachikoma-orchestrator.service", "tachikoma-renewal.service", "tachikoma-renewal.timer"]
        for name in (*names, *map(self.further.unit, self.choices.parts)):
            yield self.layout.unit(name)
        if self.choices.own_redis:
            yield self._redis_unit()

    def _redis_unit(self) -> UnitFile:
        unit = self.layout.unit("tachikoma-redis.service")
        return replace(unit, content=unit.content.replace("/usr/bin/redis-server", self.redis_server))
