"""Access of Celery and kombu to Redis, with the ACL user, password and certificates of `tachikoma.redis.access`.

With stock kombu, two events end a Celery worker: an error reply (`MISCONF` and `OOM` when disk or memory is full,
`READONLY` and `NOREPLICAS` around a failover), and a list element that is not a message. Here the worker survives both.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from celery import Celery
from celery.backends.redis import RedisBackend
from kombu.transport import TRANSPORT_ALIASES, redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from tachikoma.config.logs import get_logger
from tachikoma.redis.access import RedisAccess, celery_url, wrong_type
from tachikoma.redis.sentinel import broker_connection_class
from tachikoma.redis.tls import BrokerTlsConnection

__all__ = [
    "HEALTH_SECONDS",
    "WORKER",
    "BrokerChannel",
    "BrokerTransport",
    "ResultBackend",
    "install",
    "result_backend",
    "settings",
]

log = get_logger(__name__)

#: Seconds between kombu's checks of its connections. A consumer whose connection broke silently takes messages
#: again after its poll and two checks.
HEALTH_SECONDS = 4
#: Wait after an error reply, in seconds. Celery reconnects at once, so a Redis that only refuses would be flooded.
REFUSED_SECONDS = 1.0
#: The same where one of the queues is no list. The others are read meanwhile.
WRONG_QUEUE_SECONDS = 0.1


#: Settings of every Celery worker of Tachikoma. Features that need names shared by all workers are off, and so are
#: Celery's own logs. A message is taken only when a slot is free, so that none waits in the worker's memory.
WORKER: dict[str, Any] = {
    "worker_prefetch_multiplier": 1,
    "worker_disable_prefetch": True,
    "worker_enable_remote_control": False,
    "worker_send_task_events": False,
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
}


class _Unacknowledged(redis.QoS):
    """The unacknowledged messages of a channel."""

    def restore_visible(self, *args: Any, **options: Any) -> Any:
        """Put back messages of consumers that are gone. It is tried again soon, so it may fail."""
        try:
            return super().restore_visible(*args, **options)
        except ResponseError as error:
            log.warning("queue.refused", error=str(error)[:300])
            return None


class BrokerChannel(redis.Channel):
    """A channel that survives error replies and unreadable messages."""

    QoS = _Unacknowledged
    from_transport_options = (*redis.Channel.from_transport_options, "connection_options")
    connection_class_ssl: Any = BrokerTlsConnection
    #: Credentials and certificates, from `tachikoma.redis.access`.
    connection_options: Mapping[str, Any] = MappingProxyType({})
    #: kombu's order of the queues.
    _queue_cycle: Any

    def _connparams(self, asynchronous: bool = False) -> Any:
        if "primary" in self.connection_options:
            self.connection_class = broker_connection_class(tls=False, follows=True)
            self.connection_class_ssl = broker_connection_class(tls=True, follows=True)
        return {**super()._connparams(asynchronous), **self.connection_options}  # type: ignore[misc]

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]
        except ResponseError as error:
            if wrong_type(error):
                return self._skip_wrong_queue(error)
            log.warning("queue.refused", error=str(error)[:300])
            # In the thread of Celery's hub, which has nothing else to do then.
            time.sleep(REFUSED_SECONDS)
            raise RedisConnectionError(f"Redis refuses: {error}") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            # The element is off the list already. No part of Tachikoma writes such elements.
            log.warning("message.unreadable", error=repr(error)[:300])
            return True

    def _skip_wrong_queue(self, error: ResponseError) -> bool:
        """Let the next poll begin with another queue, since a poll ends at the first one that is no list."""
        log.error("queue.unreadable", error=str(error)[:300])
        self._queue_cycle.rotate(self._queue_cycle.consume(1)[0])
        time.sleep(WRONG_QUEUE_SECONDS)
        return True


class QueueChannel(BrokerChannel):
    """A channel to queues that are known by their names.

    It neither writes nor reads the bindings of exchanges or the length of queues, so it needs no rights for them.
    """

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        return

    def _size(self, queue: str) -> int:
        # The reply to a declaration, which is not used.
        return 0


class BrokerTransport(redis.Transport):
    """The transport of `redis://`, `rediss://` and `redis+socket://`."""

    Channel = QueueChannel
    #: A Redis that refuses a command is waited for like one that is away: rights, disk, memory and replicas come back.
    connection_errors = (*redis.Transport.connection_errors, ResponseError)


class ResultBackend(RedisBackend):
    """Celery's result backend with the same access: the `connection_options` of the broker's transport."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app: Celery
        self.connparams: dict[str, Any]
        options = self.app.conf.broker_transport_options.get("connection_options", {})
        self.connparams.update(options)
        if kind := broker_connection_class(tls="tls" in options, follows="primary" in options):
            self.connparams["connection_class"] = kind


def result_backend(access: RedisAccess) -> str:
    """Return the value of Celery's setting `result_backend`, to be used with those of `settings`."""
    url = celery_url(access.url).removeprefix("redis+")
    if access.tls is not None:
        # Celery requires this option; the connection options decide what is checked.
        url += "?ssl_cert_reqs=CERT_REQUIRED"
    return f"{__name__}:{ResultBackend.__name__}+{url}"


def install(transport: type[BrokerTransport] = BrokerTransport) -> None:
    """Make the Celery of this process use a transport for Redis URLs."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{transport.__module__}:{transport.__name__}"


def settings(access: RedisAccess, *, client_name: str, **transport_options: Any) -> dict[str, Any]:
    """Return Celery's settings for the broker; messages are JSON only.

    Args:
        access: the Redis server, with credentials and certificates.
        client_name: name of the connections in `CLIENT LIST`.
        transport_options: further options of kombu's Redis transport.
    """
    return {
        "broker_url": celery_url(access.url),
        # Switches TLS on; the connection options below contain the certificates.
        "broker_use_ssl": {} if access.tls is None else {"ssl_cert_reqs": "required"},
        "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {
            "priority_steps": [0],
            "socket_keepalive": True,
            "health_check_interval": HEALTH_SECONDS,
            "socket_timeout": access.operation_seconds,
            "socket_connect_timeout": access.connect_seconds,
            "client_name": client_name,
            "connection_options": access.connection_options,
            **transport_options,
        },
        "redis_socket_timeout": access.operation_seconds,
        "redis_socket_connect_timeout": access.connect_seconds,
        # Only JSON is decoded.
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
    }
