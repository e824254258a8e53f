"""The steps for Redis: its users, its configuration, and its certificate."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from redis import Redis
from redis.exceptions import RedisError

from tachikoma.errors import ConfigurationError
from tachikoma.identity.certificates import dns_names
from tachikoma.identity.files import BUNDLE_FILE, CERTIFICATE_FILE, KEY_FILE
from tachikoma.redis.acl_file import acl_file, agents_in
from tachikoma.redis.passwords import Passwords, read_password
from tachikoma.redis.users import ADMIN
from tachikoma.setup.steps import Host, replace_file

__all__ = ["LoadedCertificate", "RedisUsers", "configuration", "waits_for_disk"]

#: First version with WAITAOF.
DURABLE = (7, 2)
#: Longest wait for a connection.
CONNECT_SECONDS = 5.0


def waits_for_disk(program: str) -> bool:
    """Return True if a redis-server can confirm that data is on disk.

    Raises:
        ConfigurationError: it cannot be run.
    """
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(
            f"cannot run {program}: {error}; install Redis 7 or Valkey, or name an existing one with --redis-url"
        ) from None
    found = re.search(r"v=(\d+)\.(\d+)", done.stdout)
    return found is not None and (int(found[1]), int(found[2])) >= DURABLE


def configuration(*, data: Path, acl: Path, identity: Path, bind: str, port: int, durable: bool) -> str:
    """Return the configuration of a Redis with TLS, as docs/redis.md describes it."""
    settings = {
        "bind": bind,
        "port": "0",
        "tls-port": str(port),
        "tls-cert-file": str(identity / CERTIFICATE_FILE),
        "tls-key-file": str(identity / KEY_FILE),
        "tls-ca-cert-file": str(identity / BUNDLE_FILE),
        "tls-auth-clients": "yes",
        "aclfile": str(acl),
        "dir": str(data),
        "appendonly": "yes",
        "appendfsync": "always" if durable else "everysec",
        "save": '""',
        "maxmemory-policy": "noeviction",
        "maxclients": "10000",
        "daemonize": "no",
    }
    return "".join(f"{name} {value}\n" for name, value in settings.items())


@dataclass(frozen=True, slots=True)
class RedisUsers:
    """The ACL file of a Redis server: a user for each password. Agents that joined stay in it."""

    #: The file. Redis itself rewrites it when agents join.
    path: Path
    #: Folder of passwords.
    passwords: Path
    owner: str = ""

    @property
    def _plan(self) -> Path:
        """Copy of the planned file: Redis writes its own with the same users and in other words."""
        return self.passwords.with_name(f"{self.path.name}.planned")

    def pending(self, host: Host) -> str:
        """Compare the last written file with the plan."""
        if not self.path.is_file():
            return f"write the users of Redis to {self.path}"
        planned = self._plan.read_text(encoding="utf-8") if self._plan.is_file() else ""
        if not self.passwords.is_dir() or planned != acl_file(Passwords(self.passwords)):
            return f"change the users of Redis in {self.path} (a Redis that runs reads them with ACL LOAD)"
        return ""

    def apply(self, host: Host) -> None:
        """Write the file with the users of the plan, and with the agents that it has."""
        passwords = Passwords(self.passwords)
        joined = agents_in(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        replace_file(self.path, acl_file(passwords, joined=joined), 0o600, self.owner, host)
        replace_file(self._plan, acl_file(passwords), 0o600, "", host)


@dataclass(frozen=True, slots=True)
class LoadedCertificate:
    """A Redis that runs with the certificate in its folder, also after a renewal. It need not be restarted."""

    host: str
    port: int
    #: Folder of its certificate.
    identity: Path
    #: File with the password of the user `admin`.
    password: Path

    def pending(self, host: Host) -> str:
        """Compare the certificate that Redis shows with the file; a Redis that does not run reads it at its start."""
        if not (self.identity / CERTIFICATE_FILE).is_file():
            return ""
        try:
            shown = self._shown()
        except OSError:
            return ""
        if shown and self.host not in dns_names(x509.load_der_x509_certificate(shown)):
            # It runs with a certificate for another name, which this connection must not trust; it is restarted.
            return ""
        leaf = x509.load_pem_x509_certificates((self.identity / CERTIFICATE_FILE).read_bytes())[0]
        return "" if shown == leaf.public_bytes(Encoding.DER) else "let Redis load its new certificate"

    def _shown(self) -> bytes | None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # The certificate is only compared with the file.
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(self.identity / CERTIFICATE_FILE, self.identity / KEY_FILE)
        with (
            socket.create_connection((self.host, self.port), CONNECT_SECONDS) as connection,
            context.wrap_socket(connection) as secured,
        ):
            return secured.getpeercert(binary_form=True)

    def apply(self, host: Host) -> None:
        """Set the two files of the certificate again, which loads them."""
        certificate, key = str(self.identity / CERTIFICATE_FILE), str(self.identity / KEY_FILE)
        redis = Redis(
            host=self.host, port=self.port, username=ADMIN, password=read_password(self.password),
            ssl=True, ssl_certfile=certificate, ssl_keyfile=key, ssl_ca_certs=str(self.identity / BUNDLE_FILE),
        )  # fmt: skip
        try:
            redis.config_set("tls-cert-file", certificate, "tls-key-file", key)
        except RedisError as error:
            raise ConfigurationError(f"Redis does not load its certificate: {error}") from None
        finally:
            redis.close()
