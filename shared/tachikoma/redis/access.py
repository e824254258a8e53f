"""How both components reach Redis: URL, ACL user, TLS. Not imported by the client, which does not need it.

Certificates and passwords are read from their files when a connection is made, so whoever replaces them needs no
restart; connections that stand go on.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import redis.connection
import structlog
from pydantic import Field
from pydantic_settings import BaseSettings
from redis import asyncio as redis_asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tachikoma.errors import ConfigurationError
from tachikoma.identity.svid import SvidSource
from tachikoma.redis.commands import Redis
from tachikoma.redis.users import read_password

__all__ = [
    "OPERATION_SECONDS",
    "BrokerTlsConnection",
    "RedisAccess",
    "RedisSettings",
    "celery_url",
    "check_url",
    "connect",
    "wrong_type",
]

#: Longest time one command may take before the connection counts as broken.
OPERATION_SECONDS = 10.0
#: Longest time to wait for a connection.
CONNECT_SECONDS = 5.0

log = structlog.get_logger(__name__)


class RedisSettings(BaseSettings):
    """Where Redis is, and who this process is to it."""

    #: redis://, rediss:// or unix:///path of Redis or Valkey 7 or newer.
    redis_url: str = Field(repr=False)
    #: ACL user; by default the one that `tachikoma redis acl` makes for this component, where there is a password file.
    redis_user: str = ""
    #: File whose first line is that user's password. It goes before one in the URL.
    redis_password_file: Path | None = None
    #: Certificates that Redis's own must be signed by, with rediss://; by default the bundle of the identity.
    redis_ca: Path | None = None
    #: Certificate and key shown to Redis; by default those of the identity.
    redis_certificate: Path | None = None
    redis_key: Path | None = None


def check_url(url: str) -> str:
    """Return the URL if it is one of ours.

    Raises:
        ConfigurationError: it is not redis://, rediss:// or unix://, or asks for more than a database.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "unix"):
        # Not the URL itself: it may hold a password.
        raise ConfigurationError(
            f"{parts.scheme or 'a URL without a scheme'} is no way to reach Redis; use redis://, rediss:// or "
            "unix:///path/to/socket"
        )
    others = sorted(parse_qs(parts.query, keep_blank_values=True).keys() - {"db"})
    if others:
        # redis-py would also take what switches certificate checks off.
        raise ConfigurationError(
            f"the URL of Redis asks for {', '.join(others)}; only ?db= is taken there, the rest has settings of its own"
        )
    return url


def _database(url: str) -> str:
    parts = urlsplit(url)
    path = "" if parts.scheme == "unix" else parts.path.strip("/")
    return parse_qs(parts.query).get("db", [path or "0"])[0]


def celery_url(url: str) -> str:
    """The same server as Celery and kombu write it, without user and password: unix sockets are `redis+socket://`."""
    parts = urlsplit(check_url(url))
    if parts.scheme == "unix":
        return f"redis+socket://{parts.path}?virtual_host={_database(url)}"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/{_database(url)}"


class Tls:
    """The client's side of TLS, with the newest files that fit each other."""

    def __init__(self, ca: Path | None, pair: tuple[Path, Path] | None, identity: SvidSource | None) -> None:
        """Read what is to be used.

        Args:
            ca: certificates that the server's must be signed by; by default the bundle of the identity.
            pair: certificate and key to be shown; by default those of the identity.
            identity: this process's own.

        Raises:
            ConfigurationError: something is missing, cannot be read, or does not fit.
        """
        self._ca, self._pair, self._identity = ca, pair, identity
        self._lock = Lock()
        try:
            self._loaded = self._read()
            self._context = self._load(*self._loaded)
        except OSError as error:
            raise ConfigurationError(f"cannot use the certificates for Redis: {error}") from error

    def get(self) -> ssl.SSLContext:
        """What the next connection is to use."""
        with self._lock:
            try:
                newest = self._read()
                if newest != self._loaded:
                    self._context = self._load(*newest)
                    self._loaded = newest
            except OSError as error:
                # Perhaps between the writes of certificate and key: the pair before it is good until it expires.
                log.warning("redis.certificate_kept", reason=str(error))
            return self._context

    def _read(self) -> tuple[bytes, bytes, bytes]:
        """CA, certificate chain and key."""
        if (self._ca is None or self._pair is None) and self._identity is None:
            raise ConfigurationError(
                "rediss:// needs an identity, or TACHIKOMA_REDIS_CA, TACHIKOMA_REDIS_CERTIFICATE and "
                "TACHIKOMA_REDIS_KEY"
            )
        svid = self._identity.current() if self._identity is not None else None
        if self._ca is not None:
            ca = self._ca.read_bytes()
        else:
            assert svid is not None
            ca = svid.bundle.pem
        if self._pair is not None:
            return ca, self._pair[0].read_bytes(), self._pair[1].read_bytes()
        assert svid is not None
        return ca, svid.certificate_pem, svid.key_pem

    @staticmethod
    def _load(ca: bytes, certificate: bytes, key: bytes) -> ssl.SSLContext:
        # Not `ssl.create_default_context()`, as redis-py does: that trusts every CA of the host besides.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_verify_locations(cadata=ca.decode("ascii"))
        except UnicodeDecodeError:
            raise ssl.SSLError("the CA file is not PEM") from None
        # It reads files only. The chain and the key are what was read once, so that they fit; the key meets no disk.
        descriptor = os.memfd_create("tachikoma-redis", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            file.write(certificate + b"\n" + key)
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        return context


class TlsConnection(redis_asyncio.SSLConnection):
    """A connection of our own clients."""

    def __init__(self, *, tls: Tls, **options: Any) -> None:
        super().__init__(**options)
        # It is asked for its context at each (re)connect; that of redis-py would keep its first.
        self.ssl_context = tls  # type: ignore[assignment]


class BrokerTlsConnection(redis.connection.SSLConnection):
    """A connection of kombu's."""

    def __init__(self, *, tls: Tls, **options: Any) -> None:
        super().__init__(**options)
        self._tls = tls

    def _wrap_socket_with_ssl(self, sock: Any) -> ssl.SSLSocket:
        return self._tls.get().wrap_socket(sock, server_hostname=self.host)


class _Password(CredentialProvider):
    """User and password; from a file, as it is when a connection is made."""

    def __init__(self, user: str, password: str | Path) -> None:
        self._user, self._password = user, password

    def get_credentials(self) -> tuple[str, str]:
        if isinstance(self._password, str):
            return self._user, self._password
        try:
            return self._user, read_password(self._password)
        except ConfigurationError as error:
            raise RedisConnectionError(str(error)) from None

    async def get_credentials_async(self) -> tuple[str, str]:
        return self.get_credentials()


@dataclass(frozen=True, slots=True)
class RedisAccess:
    """A Redis, and how to get in."""

    # Not in `repr`: it may hold a password.
    url: str = field(repr=False)
    credentials: CredentialProvider | None = None
    tls: Tls | None = None

    @classmethod
    def of(cls, settings: RedisSettings, *, identity: SvidSource | None, user: str) -> RedisAccess:
        """As settings say.

        Args:
            settings: of the component.
            identity: its X.509-SVID, which is shown where the settings name no other certificate.
            user: its ACL user where neither the settings nor the URL name one.

        Raises:
            ConfigurationError: a file cannot be read, or the settings do not fit each other.
        """
        url = check_url(settings.redis_url)
        parts = urlsplit(url)
        name = settings.redis_user or unquote(parts.username or "")
        credentials = None
        if settings.redis_password_file is not None:
            read_password(settings.redis_password_file)
            credentials = _Password(name or user, settings.redis_password_file)
        elif parts.password:
            credentials = _Password(name or "default", unquote(parts.password))
        elif name:
            raise ConfigurationError(
                f"there is no password for the Redis user {name}; set TACHIKOMA_REDIS_PASSWORD_FILE"
            )
        tls = None
        if parts.scheme == "rediss":
            certificate, key = settings.redis_certificate, settings.redis_key
            if (certificate is None) != (key is None):
                raise ConfigurationError("TACHIKOMA_REDIS_CERTIFICATE and TACHIKOMA_REDIS_KEY are set together or not")
            pair = (certificate, key) if certificate is not None and key is not None else None
            tls = Tls(settings.redis_ca, pair, identity)
        return cls(url, credentials, tls)

    @property
    def connection_options(self) -> dict[str, Any]:
        """What each connection of redis-py is given beside its address, also by kombu."""
        # No CLIENT SETINFO: it tells nobody anything, and Redis 7.0 and 7.2 want different ACL rules for it.
        options: dict[str, Any] = {"driver_info": None}
        if self.credentials is not None:
            options |= {"credential_provider": self.credentials, "username": None, "password": None}
        if self.tls is not None:
            options["tls"] = self.tls
        return options


def connect(server: RedisAccess | str, *, name: str, max_connections: int = 64) -> Redis:
    """A client whose commands are repeated once on a broken connection.

    So a restart of Redis costs no request. Every command sent through it must bear repetition: the Lua scripts
    compare before they set, changes and claims are known by a token, and appends to an output carry their own number.

    Args:
        server: which Redis, or just its URL.
        name: what Redis calls the connections.
        max_connections: more are waited for.
    """
    access = server if isinstance(server, RedisAccess) else RedisAccess(check_url(server))
    address: dict[str, Any] = {**redis_asyncio.connection.parse_url(access.url)}
    if access.tls is not None:
        address["connection_class"] = TlsConnection
    pool = redis_asyncio.BlockingConnectionPool(
        **{**address, **access.connection_options},
        client_name=name,
        max_connections=max_connections,
        timeout=OPERATION_SECONDS,
        socket_timeout=OPERATION_SECONDS,
        socket_connect_timeout=CONNECT_SECONDS,
        health_check_interval=0,
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError, RedisTimeoutError)),
        protocol=2,
    )
    # redis-py's own types cover every way of decoding, so a cast it is; a test compares the replies with the types.
    return cast(Redis, redis_asyncio.Redis.from_pool(pool))


def wrong_type(error: Exception) -> bool:
    """Whether a name holds another kind of value than belongs there; nobody but who means harm puts one there."""
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)
