"""The whole system as processes of one machine: Redis, an orchestrator and agents, over real mTLS.

`tachikoma dev`, `tachikoma demo` and the tests use it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from tachikoma.client.profile import Profile
from tachikoma.client.sync import Client
from tachikoma.dev import files
from tachikoma.dev.folder import SERVER_NAME, TRUST_DOMAIN, StackFolder
from tachikoma.dev.identities import Identities
from tachikoma.dev.part import Part
from tachikoma.dev.programs import Programs, redis_user_of
from tachikoma.dev.redis_server import RedisServer, free_port
from tachikoma.dev.runtime import Runtime
from tachikoma.errors import Unavailable
from tachikoma.identity.spiffe import SpiffeId
from tachikoma.redis.passwords import Passwords, read_password
from tachikoma.redis.users import BEAT, FLOWER, application_user
from tachikoma.vocabulary.agents import AgentInfo

__all__ = ["APPLICATION", "SERVER_NAME", "TRUST_DOMAIN", "Stack"]


#: Name of the Celery application that may use a stack with a submitter.
APPLICATION = "dev"


def _settings(folder: StackFolder, schedules: str | None) -> dict[str, str]:
    """Return the settings of all parts that differ from their defaults, as environment variables."""
    settings = {
        "TACHIKOMA_STOP_GRACE": "3s",
        # The disk of a laptop is synced once a second; commands do not wait for that.
        "TACHIKOMA_AUDIT_DURABLE": "false",
        "TACHIKOMA_AUDIT_LOG": str(folder.audit_log),
        "TACHIKOMA_AUDIT_KEY": str(folder.audit_key),
        "TACHIKOMA_KILL_GRACE": "5s",
        # The stop of an idle agent waits until its poll of the queue returns.
        "TACHIKOMA_POLL": "0.2s",
    }
    return settings if schedules is None else {**settings, "TACHIKOMA_SCHEDULES": schedules}


class Stack:
    """Redis, orchestrator and agents under one folder. A context manager."""

    #: Address of the orchestrator, and of Flower as a URL; empty before their first start.
    address = ""
    flower_url = ""
    #: Whether the last start wrote the policy.
    has_new_policy = False
    redis: Part
    orchestrator: Part
    submitter: Part | None = None
    beat: Part | None = None
    flower: Part | None = None
    #: None while nothing runs.
    _runtime: Runtime | None = None
    _server: RedisServer
    _programs: Programs

    def __init__(
        self,
        data: Path,
        *,
        agents: int = 1,
        listen: str | None = None,
        redis_server: Path | None = None,
        redis_tls: bool = False,
        submitter: bool = False,
        schedules: str | None = None,
        flower: str | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        """Prepare a stack; nothing is started yet.

        Args:
            data: folder for all state.
            agents: number of agents; they are called agent-1, agent-2, …
            listen: address of the orchestrator; None for a free port of this machine.
            redis_server: a redis-server or valkey-server to run; None for the embedded Valkey.
            redis_tls: whether the parts connect to it over TLS, each with its identity as certificate. The embedded
                Valkey does not support that.
            submitter: whether to run a submitter, for Celery applications.
            schedules: a file or folder of schedules, or module:app of a Celery application; a submitter and a beat
                then run as well.
            flower: address of a Flower, or None for none; its user is in `flower_users`.
            environment: further settings of the parts, as environment variables.
        """
        self._folder = StackFolder(data.absolute())
        self.listen = listen or f"127.0.0.1:{free_port()}"
        self.agent_ids = [f"agent-{number}" for number in range(1, agents + 1)]
        self._redis_program, self._redis_tls = redis_server, redis_tls
        self._with_submitter = submitter or schedules is not None
        self._with_beat = schedules is not None
        self._flower_listen = flower
        optional = {BEAT: self._with_beat, FLOWER: flower is not None, "redis": redis_tls}
        services = ["orchestrator", *(name for name, wanted in optional.items() if wanted)]
        self._identities = Identities(self._folder, services=services, agents=self.agent_ids)
        self._environment = {**_settings(self._folder, schedules), **(environment or {})}
        self.agents: dict[str, Part] = {}

    # --- places and names ---------------------------------------------------------------------------------------------

    @property
    def data(self) -> Path:
        """The folder for all state."""
        return self._folder.data

    @property
    def user(self) -> SpiffeId:
        """The SPIFFE ID of this user."""
        return self._identities.user

    @property
    def socket(self) -> Path:
        """The unix socket of Redis."""
        assert self._runtime is not None
        return self._runtime.folder / "redis.sock"

    @property
    def redis_admin(self) -> dict[str, str]:
        """The arguments of `redis.Redis` that connect as the user `admin`, for the developer who runs the stack."""
        return self._server.admin

    @property
    def redis_admin_url(self) -> str:
        """URL of Redis with the user `admin` and its password, for the developer who runs the stack."""
        admin = self.redis_admin
        return f"unix://{admin['username']}:{admin['password']}@{self.socket}"

    @property
    def redis_admin_celery_url(self) -> str:
        """The same in the form of Celery and kombu."""
        admin = self.redis_admin
        return f"redis+socket://{admin['username']}:{admin['password']}@{self.socket}?virtual_host=0"

    @property
    def celery_url(self) -> str:
        """URL of Redis for a Celery application on this machine; the same after each start of this folder."""
        user = application_user(APPLICATION)
        return f"redis+socket://{user}:{read_password(self.redis_passwords.path(user))}@{self._link}?virtual_host=0"

    @property
    def _link(self) -> Path:
        """A link to the socket of Redis, whose own path differs at each start."""
        return self.data / "redis.sock"

    @property
    def redis_url(self) -> str:
        """URL of Redis without credentials; each part authenticates with a user of its own (`redis_user_of`)."""
        return self._server.url

    def redis_url_of(self, part: str) -> str:
        """Return the URL of Redis that a part uses."""
        return self._server.part_url

    def redis_user_of(self, part: str) -> str:
        """Return the Redis user of a part: `orchestrator`, `flower` or an agent's id."""
        return redis_user_of(part)

    @property
    def redis_passwords(self) -> Passwords:
        """The passwords of all Redis users."""
        return self._folder.redis_passwords

    @property
    def flower_users(self) -> Path:
        """The file with the one user of Flower and its random password."""
        return self._folder.flower_users

    @property
    def policy(self) -> Path:
        """The policy file."""
        return self._folder.policy

    def identity(self, name: str) -> Path:
        """Return the folder of an identity: `user`, `orchestrator`, `flower` or an agent's id."""
        return self._folder.identity(name)

    def profile(self) -> Profile:
        """Return the client profile of this user."""
        return Profile(address=self.address, server_name=SERVER_NAME, identity=self.identity("user"))

    @property
    def parts(self) -> list[Part]:
        """All processes, in the order of their start."""
        services = [part for part in (self.submitter, self.beat, self.flower) if part is not None]
        return [self.redis, self.orchestrator, *self.agents.values(), *services]

    # --- identities ---------------------------------------------------------------------------------------------------

    def issue_identities(self) -> None:
        """Issue new identities for all parts and this user; running parts load theirs within a second."""
        self._identities.issue_all()

    def renew_identities(self) -> None:
        """Issue new identities when half of the lifetime is over."""
        self._identities.renew()

    def issue(self, spiffe_id: SpiffeId) -> Profile:
        """Issue an identity and return a client profile with it."""
        name = spiffe_id.path.strip("/").replace("/", "-")
        self._identities.issue(spiffe_id, name)
        return replace(self.profile(), identity=self.identity(name))

    # --- start --------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything and wait until all agents are online.

        Raises:
            ConfigurationError: the folder is in use or cannot be used, or a part did not start.
        """
        # 1. The folder is locked before anything in it changes.
        self._runtime = Runtime(self.data)
        try:
            self._folder.check_format()
            # 2. Files, which the parts' command lines name.
            self._write_files()
            self._make_parts()
            for part in self.parts:
                part.inherit(self._runtime.parts_lock)
            # 3. Redis, on which all depend; the orchestrator, so that agents are seen; the agents.
            self.start_redis()
            self._forget_earlier_agents()
            self.start_orchestrator()
            for agent in self.agent_ids:
                self.start_agent(agent)
            self.wait_for_agents()
            # 4. The services whose work needs an agent, or shows one.
            for service in (self.submitter, self.beat):
                if service is not None:
                    self.start_part(service)
            if self.flower is not None:
                self.start_flower()
        except BaseException:
            self.stop()
            raise

    def _write_files(self) -> None:
        self._folder.logs.mkdir(exist_ok=True)
        self.issue_identities()
        self.has_new_policy = files.write_policy(self.policy, self.user)
        files.write_audit_key(self._folder.audit_key)
        if self._flower_listen is not None:
            files.write_flower_users(self.flower_users)
        if self._with_submitter:
            self.redis_passwords.make(application_user(APPLICATION))
        self._link.unlink(missing_ok=True)
        self._link.symlink_to(self.socket)

    def _make_parts(self) -> None:
        port = free_port() if self._redis_tls else None
        self._server = RedisServer(self._folder, self.socket, self._redis_program, port)
        self._programs = Programs(self._folder, self._server.part_url, self.identity, self._environment)
        self.redis = Part("redis", self._server.write_files(self.agent_ids), self._folder.log("redis"), {})
        self.orchestrator = self._programs.orchestrator(self.listen)
        self.agents = {agent: self._programs.worker(agent) for agent in self.agent_ids}
        self.submitter = self._programs.submitter() if self._with_submitter else None
        self.beat = self.make_beat("beat") if self._with_beat else None
        self.flower = None if self._flower_listen is None else self._programs.flower(self._flower_listen)

    def make_beat(self, name: str) -> Part:
        """Make a beat that is not started yet; several may run."""
        return self._programs.beat(name)

    def start_redis(self) -> None:
        """Start Redis and wait until it responds."""
        self.redis.start()
        self.redis.wait_until(self._server.answers)

    def _forget_earlier_agents(self) -> None:
        """Remove agents of earlier starts of this folder from the list, unless this start runs them too.

        Otherwise they would be offline forever, and targets of `tachikoma run '*'`. Their data stays for a start that
        runs them again.
        """
        earlier = {path.name for path in (self.data / "agents").glob("*")} - {*self.agent_ids}
        if earlier:
            self._server.forget_agents(sorted(earlier))

    def start_orchestrator(self) -> None:
        """Start the orchestrator and wait until it accepts calls. A restart keeps the address."""
        self.address = self.orchestrator.start_until_ready()
        self.orchestrator.keep_option("--listen", self.address)

    def start_flower(self) -> None:
        """Start Flower and wait until it listens. A restart keeps the address."""
        assert self.flower is not None
        self.flower_url = self.flower.start_until_ready()
        self.flower.keep_option("--listen", self.flower_url.partition("://")[2])

    def start_agent(self, agent: str) -> None:
        """Start an agent and wait until it accepts orders."""
        self.start_part(self.agents[agent])

    def start_part(self, part: Part) -> None:
        """Start a part that reports its readiness, and wait for that."""
        part.start_until_ready()

    def wait_for_agents(self) -> None:
        """Wait until the orchestrator sees all agents online."""
        with Client(self.profile()) as client:

            def online() -> bool:
                with suppress(Unavailable):
                    return {agent.id for agent in client.agents() if agent.online} >= set(self.agent_ids)
                return False

            self.orchestrator.wait_until(online)

    def running_agents(self) -> list[AgentInfo]:
        """Return the agents that this stack runs. The developer may have started others."""
        with Client(self.profile()) as client:
            return [agent for agent in client.agents() if agent.id in self.agent_ids]

    def isolate(self) -> bool:
        """Add isolation at `private` to a new policy if each agent can enforce it, and wait until the policy is active.

        Returns:
            False if an agent cannot.
        """
        if not all("private" in agent.isolation for agent in self.running_agents()):
            return False
        with Client(self.profile()) as client:
            before = client.policy_status().digest
            files.isolate(self.policy)
            self.orchestrator.wait_until(lambda: client.policy_status().digest != before)
        return True

    # --- stop ---------------------------------------------------------------------------------------------------------

    def failed_part(self) -> Part | None:
        """Return a part that ended by itself, or None."""
        return next((part for part in self.parts if not part.alive), None)

    def stop(self) -> None:
        """Stop everything: agents first, so that they can report; Redis last. Safe to repeat."""
        # 1. Flower, which only shows. Then agents, all at once: each may have commands to end.
        if self.flower is not None:
            self.flower.stop()
        self._stop_agents()
        # 2. The orchestrator and its services, 3. Redis, which writes its last changes.
        if self.agents:
            for service in (self.beat, self.submitter):
                if service is not None:
                    service.stop()
            self.orchestrator.stop()
            self.redis.stop()
        # 4. The sockets and the lock.
        if self._runtime is not None:
            self._link.unlink(missing_ok=True)
            self._runtime.close()
            self._runtime = None

    def _stop_agents(self) -> None:
        for part in self.agents.values():
            part.terminate()
        for agent, part in self.agents.items():
            part.stop()
            # A worker that was killed left its spawner, with the commands of that.
            if (self._folder.agent(agent) / "spawner.sock").exists():
                part.run_once("--sweep")
