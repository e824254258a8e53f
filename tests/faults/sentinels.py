"""A stack on three Redis servers and three Sentinels, all with TLS and ACL, and what can happen to the primary."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import redis as redis_py
from redis.exceptions import RedisError, ResponseError
from support import wait_until

from tachikoma.dev.folder import REDIS_HOST
from tachikoma.dev.part import Part
from tachikoma.dev.programs import Programs
from tachikoma.dev.redis_server import free_port
from tachikoma.dev.stack import Stack
from tachikoma.identity.files import BUNDLE_FILE, CERTIFICATE_FILE, KEY_FILE
from tachikoma.redis.acl_file import acl_file, sentinel_acl_file
from tachikoma.redis.users import ADMIN, ENROLLER, REPLICA, SENTINEL

__all__ = ["NAME", "SentinelWorld"]

#: Name of the primary.
NAME = "tk"
#: After this time without another primary an operator asks for a failover again; one takes about a second.
ASK_AGAIN_SECONDS = 15


class SentinelWorld(Stack):
    """Three servers, three Sentinels, an orchestrator and agents."""

    def __init__(self, data: Path, redis_server: Path, *, down_after_ms: int = 2000, **values: Any) -> None:
        environment = {
            "TACHIKOMA_RATE_LIMIT": json.dumps({"queueTimeout": "5m"}), "TACHIKOMA_LEASE": "5m",
            **values.pop("environment", {}),
        }  # fmt: skip
        super().__init__(data, redis_server=redis_server, redis_tls=True, environment=environment, **values)
        self._down_after_ms = down_after_ms
        #: Every server by its port, and the Sentinels by theirs.
        self.servers: dict[int, Part] = {}
        self.sentinels: dict[int, Part] = {}
        #: Time from the last fault until the Sentinels named another primary.
        self.failover_seconds = 0.0
        #: Monotonic time at which they named it, and its port; 0 before the first one.
        self.named_at, self._named = 0.0, 0
        #: How long a stopped primary stays stopped at least, in seconds.
        self.hang_seconds = 0.0

    # --- set-up -------------------------------------------------------------------------------------------------------

    def _make_parts(self) -> None:
        super()._make_parts()
        first = self._server.tls_port
        assert first is not None
        for user in (REPLICA, SENTINEL, ENROLLER):
            self.redis_passwords.make(user)
        self._make_server(first, self.data / "redis" / "redis.conf", self.redis, primary=None)
        for number in (2, 3):
            port, folder = free_port(), self.data / f"redis-{number}"
            folder.mkdir()
            part = Part(f"redis-{number}", [str(self._redis_program), str(folder / "redis.conf")],
                        self.data / "logs" / f"redis-{number}.log", {})  # fmt: skip
            own = self._server.socket.with_name(f"redis-{number}.sock")
            text = (self.data / "redis" / "redis.conf").read_text()
            text = text.replace(str(self._server.socket), str(own)).replace(f"tls-port {first}", f"tls-port {port}")
            text = text.replace(f"replica-announce-port {first}", f"replica-announce-port {port}")
            text = text.replace(str(self.data / "redis") + "\n", f"{folder}\n")
            text = text.replace(str(self.data / "redis" / "users.acl"), str(folder / "users.acl"))
            (folder / "redis.conf").write_text(text)
            self._make_server(port, folder / "redis.conf", part, primary=first)
        for number in (1, 2, 3):
            port = free_port()
            self.sentinels[port] = self._make_sentinel(number, port, first)
        places = ",".join(f"{REDIS_HOST}:{port}" for port in self.sentinels)
        url = f"rediss+sentinel://{places}/{NAME}"
        #: URL of the Sentinels.
        self.url = url
        self._programs = Programs(self._folder, url, self.identity, self._environment)
        self.orchestrator = self._programs.orchestrator(self.listen)
        self.agents = {agent: self._programs.worker(agent) for agent in self.agent_ids}
        self.submitter = self._programs.submitter() if self._with_submitter else None
        self.beat = self.make_beat("beat") if self._with_beat else None
        self.flower = None if self._flower_listen is None else self._programs.flower(self._flower_listen)

    def _make_server(self, port: int, file: Path, part: Part, *, primary: int | None) -> None:
        (file.parent / "users.acl").write_text(acl_file(self.redis_passwords))
        if primary is None:
            lines = {
                "tls-replication": "yes", "masteruser": REPLICA, "masterauth": self._password(REPLICA),
                "min-replicas-to-write": "1", "min-replicas-max-lag": "1", "repl-timeout": "10",
                "repl-ping-replica-period": "1", "replica-announce-ip": REDIS_HOST,
                "replica-announce-port": str(port), "repl-diskless-sync-delay": "0",
            }  # fmt: skip
            with file.open("a") as config:
                config.writelines(f"{name} {value}\n" for name, value in lines.items())
        else:
            with file.open("a") as config:
                config.write(f"replicaof {REDIS_HOST} {primary}\n")
        self.servers[port] = part

    def _make_sentinel(self, number: int, port: int, primary: int) -> Part:
        folder = self.data / f"sentinel-{number}"
        folder.mkdir()
        (folder / "users.acl").write_text(sentinel_acl_file(self.redis_passwords))
        identity, password = self.identity("redis"), self._password(SENTINEL)
        lines = [
            "port 0", f"tls-port {port}", "tls-replication yes", "tls-auth-clients yes", f"dir {folder}",
            f"tls-cert-file {identity / CERTIFICATE_FILE}", f"tls-key-file {identity / KEY_FILE}",
            f"tls-ca-cert-file {identity / BUNDLE_FILE}", f"aclfile {folder / 'users.acl'}", "bind 127.0.0.1",
            "sentinel resolve-hostnames yes", "sentinel announce-hostnames yes",
            f"sentinel announce-ip {REDIS_HOST}", f"sentinel announce-port {port}",
            f"sentinel sentinel-user {SENTINEL}", f"sentinel sentinel-pass {password}",
            f"sentinel monitor {NAME} {REDIS_HOST} {primary} 2",
            f"sentinel auth-user {NAME} {SENTINEL}", f"sentinel auth-pass {NAME} {password}",
            f"sentinel down-after-milliseconds {NAME} {self._down_after_ms}",
            f"sentinel failover-timeout {NAME} 10000",
        ]  # fmt: skip
        (folder / "sentinel.conf").write_text("".join(f"{line}\n" for line in lines))
        command = [str(self._redis_program), str(folder / "sentinel.conf"), "--sentinel"]
        return Part(f"sentinel-{number}", command, self.data / "logs" / f"sentinel-{number}.log", {})

    def _password(self, user: str) -> str:
        return self.redis_passwords.path(user).read_text().split()[0]

    def start_redis(self) -> None:
        super().start_redis()
        for part in (*self.servers.values(), *self.sentinels.values()):
            if not part.alive:
                part.start()
        wait_until(lambda: self.replicas_of(self.primary()) == 2, "both replicas follow")
        wait_until(lambda: all(self._knows_all(port) for port in self.sentinels), "the Sentinels know each other")

    def stop(self) -> None:
        self._stop_agents()
        for service in (self.flower, self.beat, self.submitter):
            if service is not None:
                service.stop()
        if self.agents:
            self.orchestrator.stop()
        for part in (*self.sentinels.values(), *self.servers.values()):
            part.stop()
        super().stop()

    # --- looks --------------------------------------------------------------------------------------------------------

    def admin(self, port: int) -> redis_py.Redis:
        """A connection to a server or Sentinel as the user `admin`."""
        identity = self.identity("redis")
        return redis_py.Redis(
            host=REDIS_HOST, port=port, ssl=True, ssl_ca_certs=str(identity / BUNDLE_FILE), protocol=2,
            ssl_certfile=str(identity / CERTIFICATE_FILE), ssl_keyfile=str(identity / KEY_FILE),
            username=ADMIN, password=self._password(ADMIN), socket_timeout=3, decode_responses=True,
        )  # fmt: skip

    def primary(self) -> int:
        """The port of the primary, by the first Sentinel that answers."""

        def ask() -> int:
            for port in self.sentinels:
                with suppress(RedisError, OSError), self.admin(port) as sentinel:
                    return int(sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)[1])
            return 0

        return int(wait_until(ask, "a Sentinel answers"))

    def replicas_of(self, port: int) -> int:
        """The number of replicas that follow a server."""
        with suppress(RedisError, OSError), self.admin(port) as server:
            info: Any = server.info("replication")
            return sum(1 for name, value in info.items() if name.startswith("slave") and value["state"] == "online")
        return -1

    def _knows_all(self, port: int) -> bool:
        with suppress(RedisError, OSError), self.admin(port) as sentinel:
            raw: Any = sentinel.execute_command("SENTINEL", "MASTER", NAME)
            fields = raw if isinstance(raw, dict) else dict(zip(raw[::2], raw[1::2], strict=True))
            return (int(fields["num-slaves"]), int(fields["num-other-sentinels"])) == (2, 2)
        return False

    def settle(self) -> None:
        """Wait until a primary has both replicas again."""
        wait_until(lambda: self.replicas_of(self.primary()) == 2, "both replicas follow", 120)
        if self._named and self.primary() != self._named:
            # A Sentinel that had not heard of the named one yet made it a replica again (+convert-to-slave). There was
            # no primary until they named a third one.
            with self.admin(next(iter(self.sentinels))) as sentinel:
                known = sentinel.execute_command("SENTINEL", "MASTER", NAME)
            pairs = known if isinstance(known, dict) else dict(zip(known[::2], known[1::2], strict=True))
            was, self.named_at = self.named_at, time.monotonic() - int(pairs["role-reported-time"]) / 1000
            self.failover_seconds += self.named_at - was

    # --- faults -------------------------------------------------------------------------------------------------------

    def wait_for_another(self, is_another: Callable[[], bool]) -> None:
        began = time.monotonic()
        wait_until(is_another, "another server is the primary", 60)
        self.named_at, self._named = time.monotonic(), self.primary()
        self.failover_seconds = self.named_at - began

    @contextmanager
    def killed(self) -> Iterator[None]:
        """SIGKILL of the primary; it returns as a replica at the end of the block."""
        port = self.primary()
        self.servers[port].kill()
        self.wait_for_another(lambda: self.primary() != port)
        yield
        self.servers[port].start()

    @contextmanager
    def hung(self) -> Iterator[None]:
        """SIGSTOP of the primary; it goes on at the end of the block."""
        port = self.primary()
        process = psutil.Process(self.servers[port].pid)
        process.suspend()
        until = time.monotonic() + self.hang_seconds
        try:
            self.wait_for_another(lambda: self.primary() != port)
            yield
            # Its return is late on purpose.
            time.sleep(max(0.0, until - time.monotonic()))
        finally:
            process.resume()

    @contextmanager
    def separated(self) -> Iterator[None]:
        """Neither Sentinels nor replicas reach the primary any more; clients do."""
        port = self.primary()
        with self.admin(port) as server:
            for user in (SENTINEL, REPLICA):
                server.execute_command("ACL", "SETUSER", user, "off")
            server.execute_command("CLIENT", "KILL", "USER", SENTINEL)
            server.execute_command("CLIENT", "KILL", "TYPE", "REPLICA")
            self.wait_for_another(lambda: self.primary() != port)
            yield
            for user in (SENTINEL, REPLICA):
                server.execute_command("ACL", "SETUSER", user, "on")

    @contextmanager
    def planned(self) -> Iterator[None]:
        """A failover by an operator, who asks again if the Sentinel gave it up."""
        port = self.primary()
        with self.admin(next(iter(self.sentinels))) as sentinel:
            asked = -math.inf

            def is_another() -> bool:
                nonlocal asked
                if time.monotonic() - asked > ASK_AGAIN_SECONDS:
                    asked = time.monotonic()
                    # It is refused while one is in progress, and while no replica is known to be good.
                    with suppress(ResponseError):
                        sentinel.execute_command("SENTINEL", "FAILOVER", NAME)
                return self.primary() != port

            self.wait_for_another(is_another)
        yield
