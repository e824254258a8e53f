"""TLS to Redis, with certificates that may be replaced while a process runs."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from threading import Lock
from typing import Any

import redis.connection
from redis import asyncio as redis_asyncio

from tachikoma.config.logs import get_logger
from tachikoma.errors import ConfigurationError
from tachikoma.identity.svid import SvidSource
from tachikoma.redis.connections import Sending

__all__ = ["BrokerTlsConnection", "Tls", "TlsConnection"]

log = get_logger(__name__)


class Tls:
    """A TLS context of a client that is loaded again when its files change."""

    def __init__(self, ca: Path | None, pair: tuple[Path, Path] | None, identity: SvidSource | None) -> None:
        """Load the certificates.

        Args:
            ca: file of the CA certificates that must have signed the server's; None for the bundle of the identity.
            pair: files of the client's certificate and key; None for those of the identity.
            identity: the identity of this process, if it has one.

        Raises:
            ConfigurationError: a file is missing, cannot be read, or does not match the others.
        """
        self._ca, self._pair, self._identity = ca, pair, identity
        self._lock = Lock()
        try:
            self._loaded = self._read()
            self._context = self._load(*self._loaded)
        except OSError as error:
            raise ConfigurationError(f"cannot use the certificates for Redis: {error}") from error

    def get(self) -> ssl.SSLContext:
        """Return the context for the next connection, loaded again if a file changed."""
        with self._lock:
            try:
                newest = self._read()
                if newest != self._loaded:
                    self._context = self._load(*newest)
                    self._loaded = newest
            except OSError as error:
                # Certificate and key may be between their two writes; the previous pair is valid until it expires.
                log.warning("redis.certificate_kept", reason=str(error))
            return self._context

    def _read(self) -> tuple[bytes, bytes, bytes]:
        """Return CA, certificate chain and key, as PEM."""
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
        # Not `ssl.create_default_context()`, as redis-py does: that also trusts every CA of the host.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_verify_locations(cadata=ca.decode("ascii"))
        except UnicodeDecodeError:
            raise ssl.SSLError("the CA file is not PEM") from None
        # `load_cert_chain` reads files only. A memory file holds one consistent pair, and the key never reaches a disk.
        descriptor = os.memfd_create("tachikoma-redis", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            file.write(certificate + b"\n" + key)
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        return context


class TlsConnection(Sending, redis_asyncio.SSLConnection):
    """A TLS connection of the asyncio clients."""

    def __init__(self, *, tls: Tls, **options: Any) -> None:
        super().__init__(**options)
        # redis-py calls `get` of this object at each connect; its own object would keep its first context.
        self.ssl_context = tls  # type: ignore[assignment]


class BrokerTlsConnection(redis.connection.SSLConnection):
    """A TLS connection of kombu."""

    def __init__(self, *, tls: Tls, **options: Any) -> None:
        super().__init__(**options)
        self._tls = tls

    def _wrap_socket_with_ssl(self, sock: Any) -> ssl.SSLSocket:
        return self._tls.get().wrap_socket(sock, server_hostname=self.host)
