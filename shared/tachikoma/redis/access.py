"""Access to a Redis server: its URL, ACL user and TLS. The gRPC client does not import this module.

Certificates and passwords are read from their files when a connection is made. Replacing them needs no restart;
existing connections continue.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

from pydantic import Field
from redis import asyncio as redis_asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tachikoma.config.settings import PartSettings
from tachikoma.errors import ConfigurationError
from tachikoma.identity.svid import SvidSource
from tachikoma.redis.commands import Redis
from tachikoma.redis.gate import Gate, guarded
from tachikoma.redis.passwords import read_password
from tachikoma.redis.sentinel import SCHEMES, Primary, connection_class, sentinels_in
from tachikoma.redis.tls import Tls

__all__ = [
    "OPERATION_SECONDS",
    "RedisAccess",
    "RedisSettings",
    "celery_url",
    "check_url",
    "connect",
    "without_credentials",
    "wrong_type",
]

#: Longest time that one command may take, in seconds; then the connection counts as broken.
OPERATION_SECONDS = 7.0
#: Longest wait for a connection, in seconds.
CONNECT_SECONDS = 5.0
#: The same two times for a server that Sentinels may replace.
FOLLOWING_OPERATION_SECONDS, FOLLOWING_CONNECT_SECONDS = 3.0, 2.0


class RedisSettings(PartSettings):
    """The Redis server of a component, and the component's user and certificates there."""

    #: URL of Redis or Valkey, version 7 or newer: redis://, rediss://, unix:///path or
    #: rediss+sentinel://host,host/NAME.
    redis_url: str = Field(repr=False)
    #: ACL user; by default that of the URL, or the one that `tachikoma redis acl` creates for this component.
    redis_user: str = ""
    #: File whose first line is the user's password; it wins over a password in the URL. Default: none.
    redis_password_file: Path | None = None
    #: PEM file of the CA certificates that must have signed the server's; default: the bundle of the identity.
    redis_ca: Path | None = None
    #: PEM file of the certificate that is shown to Redis; default: that of the identity.
    redis_certificate: Path | None = None
    #: PEM file of the key of that certificate; default: that of the identity.
    redis_key: Path | None = None
    #: ACL user at the Sentinels. It is used only with a password file for them.
    redis_sentinel_user: str = "client"
    #: File whose first line is that user's password; by default nobody logs in there, and the certificate is enough.
    redis_sentinel_password_file: Path | None = None


def check_url(url: str) -> str:
    """Return the URL of a Redis server, checked.

    Raises:
        ConfigurationError: the scheme is none of redis://, rediss://, unix://, redis+sentinel:// and
            rediss+sentinel://, or an option other than `db` is given.
    """
    parts = urlsplit(url)
    if parts.scheme in SCHEMES:
        sentinels_in(url)
        if parts.query:
            raise ConfigurationError("the URL of Sentinels takes no options; use the settings TACHIKOMA_REDIS_…")
        return url
    if parts.scheme not in ("redis", "rediss", "unix"):
        # The message does not repeat the URL, which may contain a password.
        raise ConfigurationError(
            f"the URL of Redis has {f'the scheme {parts.scheme}' if parts.scheme else 'no scheme'}; use redis://, "
            "rediss://, unix:///path/to/socket or rediss+sentinel://host,host/NAME"
        )
    others = sorted(parse_qs(parts.query, keep_blank_values=True).keys() - {"db"})
    if others:
        # redis-py would also accept options that switch certificate checks off.
        raise ConfigurationError(
            f"the URL of Redis has the option {', '.join(others)}; only ?db= is accepted there, use the settings "
            "TACHIKOMA_REDIS_… for the rest"
        )
    return url


def without_credentials(url: str) -> str:
    """Return the URL of a Redis server without user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _database(url: str) -> str:
    parts = urlsplit(url)
    path = "" if parts.scheme == "unix" else parts.path.strip("/")
    return parse_qs(parts.query).get("db", [path or "0"])[0]


def celery_url(url: str) -> str:
    """Return the URL of the same server for Celery and kombu, without user and password."""
    parts = urlsplit(check_url(url))
    if parts.scheme in SCHEMES:
        # Connections find the primary themselves.
        return f"{SCHEMES[parts.scheme]}://primary-of-{parts.path.strip('/')}/0"
    if parts.scheme == "unix":
        return f"redis+socket://{parts.path}?virtual_host={_database(url)}"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/{_database(url)}"


class _Password(CredentialProvider):
    """User and password; a password file is read for each connection."""

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
    """A Redis server with the credentials and certificates to connect to it."""

    #: URL of the server; not in `repr`, since it may contain a password.
    url: str = field(repr=False)
    #: User and password; None connects as the user `default`.
    credentials: CredentialProvider | None = None
    #: Certificates, with rediss://; None without TLS.
    tls: Tls | None = None
    #: The primary that Sentinels name; None for a server at a fixed address.
    primary: Primary | None = None

    @classmethod
    def of(cls, settings: RedisSettings, *, identity: SvidSource | None, user: str) -> RedisAccess:
        """Build the access that settings describe.

        Args:
            settings: the settings of the component.
            identity: the component's X.509-SVID, shown to Redis unless the settings name another certificate.
            user: the component's ACL user, unless the settings or the URL name another.

        Raises:
            ConfigurationError: a file cannot be read, or the settings contradict each other.
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
            raise ConfigurationError(f"the Redis user {name} has no password; set TACHIKOMA_REDIS_PASSWORD_FILE")
        tls = None
        if parts.scheme in ("rediss", "rediss+sentinel"):
            certificate, key = settings.redis_certificate, settings.redis_key
            if (certificate is None) != (key is None):
                raise ConfigurationError(
                    "only one of TACHIKOMA_REDIS_CERTIFICATE and TACHIKOMA_REDIS_KEY is set; set both or none"
                )
            pair = (certificate, key) if certificate is not None and key is not None else None
            tls = Tls(settings.redis_ca, pair, identity)
        return cls(url, credentials, tls, _primary(url, settings, tls))

    @property
    def connection_options(self) -> dict[str, Any]:
        """Options of every connection of redis-py beside its address, also of kombu's connections."""
        # No CLIENT SETINFO: it has no use here, and Redis 7.0 and 7.2 need different ACL rules for it.
        options: dict[str, Any] = {"driver_info": None}
        if self.credentials is not None:
            options |= {"credential_provider": self.credentials, "username": None, "password": None}
        if self.tls is not None:
            options["tls"] = self.tls
        if self.primary is not None:
            options["primary"] = self.primary
        return options

    @property
    def operation_seconds(self) -> float:
        """Longest time that one command may take; then the connection counts as broken."""
        return OPERATION_SECONDS if self.primary is None else FOLLOWING_OPERATION_SECONDS

    @property
    def connect_seconds(self) -> float:
        """Longest wait for a connection."""
        return CONNECT_SECONDS if self.primary is None else FOLLOWING_CONNECT_SECONDS


def _primary(url: str, settings: RedisSettings, tls: Tls | None) -> Primary | None:
    """Return the primary that the Sentinels of a URL name; None for another URL. Raises ConfigurationError."""
    if urlsplit(url).scheme not in SCHEMES:
        return None
    options: dict[str, Any] = {"driver_info": None}
    if tls is not None:
        options["tls"] = tls
    if settings.redis_sentinel_password_file is not None:
        read_password(settings.redis_sentinel_password_file)
        options["credential_provider"] = _Password(settings.redis_sentinel_user, settings.redis_sentinel_password_file)
    return Primary(*sentinels_in(url), options)


def connect(server: RedisAccess | str, *, name: str, max_connections: int = 64, gate: Gate | None = None) -> Redis:
    """Return a client that repeats each command once when its connection breaks.

    So a restart of Redis fails no request. Every command must therefore be safe to repeat: the Lua scripts compare
    before they set, changes and claims carry a token, and appends to an output carry their own number.

    Args:
        server: the server, or its URL.
        name: name of the connections in `CLIENT LIST`.
        max_connections: most connections at once; a command waits for a free one.
        gate: decides about each new connection before its first command; None admits all.
    """
    access = server if isinstance(server, RedisAccess) else RedisAccess(check_url(server))
    address: dict[str, Any] = {}
    if access.primary is None:
        address = {**redis_asyncio.connection.parse_url(access.url)}
    address["connection_class"] = connection_class(
        unix=urlsplit(access.url).scheme == "unix", tls=access.tls is not None, follows=access.primary is not None
    )
    if gate is not None:
        address["redis_connect_func"] = guarded(gate)
    pool = redis_asyncio.BlockingConnectionPool(
        **{**address, **access.connection_options},
        client_name=name,
        max_connections=max_connections,
        timeout=access.operation_seconds,
        socket_timeout=access.operation_seconds,
        socket_connect_timeout=access.connect_seconds,
        health_check_interval=0,
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError, RedisTimeoutError)),
        protocol=2,
    )
    # redis-py's own types cover every way of decoding, so a cast it is; a test compares the replies with the types.
    return cast(Redis, redis_asyncio.Redis.from_pool(pool))


def wrong_type(error: Exception) -> bool:
    """Return True if a key contains a value of another type, which only tampering can cause."""
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)
