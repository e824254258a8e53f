"""How Celery and kombu reach Redis: with the ACL user, password and certificates that `redis_access` gives.

Stock kombu lets two things through that end a Celery worker: an error that Redis answers to `BRPOP` (a full disk or
memory, `MISCONF` and `OOM`; a failover, `READONLY`), and a list element that is no message.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import structlog
from celery import Celery
from celery.backends.redis import RedisBackend
from kombu.transport import TRANSPORT_ALIASES, redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ResponseError

from tachikoma.redis.access import RedisAccess, celery_url
from tachikoma.redis.tls import BrokerTlsConnection

__all__ = ["WORKER", "BrokerChannel", "BrokerTransport", "ResultBackend", "install", "result_backend", "settings"]

log = structlog.get_logger(__name__)

#: Celery connects again at once after a broken connection; a Redis that only refuses is asked no faster than this.
REFUSED_SECONDS = 1.0


#: Settings of every Celery worker of ours: nothing that names shared by all of them would be needed for, its logs and
#: signals left to us, and one message taken only when there is a place for it, so that none waits in its memory.
WORKER: dict[str, Any] = {
    "worker_prefetch_multiplier": 1,
    "worker_disable_prefetch": True,
    "worker_enable_remote_control": False,
    "worker_send_task_events": False,
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
}


class BrokerChannel(redis.Channel):
    """Puts messages on queues and takes them off."""

    from_transport_options = (*redis.Channel.from_transport_options, "connection_options")
    connection_class_ssl = BrokerTlsConnection
    #: Credentials and certificates, as `tachikoma.redis.access` gives them.
    connection_options: Mapping[str, Any] = MappingProxyType({})

    def _connparams(self, asynchronous: bool = False) -> Any:
        return {**super()._connparams(asynchronous), **self.connection_options}  # type: ignore[misc]

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]
        except ResponseError as error:
            log.warning("queue.refused", error=str(error)[:300])
            # In the hub's thread, which has nothing else to do then.
            time.sleep(REFUSED_SECONDS)
            raise RedisConnectionError(f"Redis refuses: {error}") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            # It was taken off the list already; nobody who may put something there wrote it.
            log.warning("message.unreadable", error=repr(error)[:300])
            return True


class QueueChannel(BrokerChannel):
    """A channel to queues that are known by their names: nobody says or asks which exchange leads there, or how long
    they are, so no right is needed for that."""

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        return

    def _size(self, queue: str) -> int:
        # What a declaration answers with; nobody looks at it.
        return 0


class BrokerTransport(redis.Transport):
    """The transport of `redis://`, `rediss://` and `redis+socket://`."""

    Channel = QueueChannel
    #: Rights that were taken away may come back, as a server may: the process waits.
    connection_errors = (*redis.Transport.connection_errors, NoPermissionError)


class ResultBackend(RedisBackend):
    """Celery's result backend with the same access; its `connection_options` are those of the broker's transport."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app: Celery
        self.connparams: dict[str, Any]
        options = self.app.conf.broker_transport_options.get("connection_options", {})
        self.connparams.update(options)
        if "tls" in options:
            self.connparams["connection_class"] = BrokerTlsConnection


def result_backend(access: RedisAccess) -> str:
    """What Celery calls the backend and its address; for the settings that `settings` gives."""
    url = celery_url(access.url).removeprefix("redis+")
    if access.tls is not None:
        # Asked for by Celery; what is required is said by the connection options.
        url += "?ssl_cert_reqs=CERT_REQUIRED"
    return f"{__name__}:{ResultBackend.__name__}+{url}"


def install(transport: type[BrokerTransport] = BrokerTransport) -> None:
    """Let this process's Celery use a transport for Redis."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{transport.__module__}:{transport.__name__}"


def settings(access: RedisAccess, *, client_name: str, **transport_options: Any) -> dict[str, Any]:
    """Celery's settings for a broker, JSON only.

    Args:
        access: which Redis, and as whom.
        client_name: what Redis calls the connections.
        transport_options: more of kombu's options for its Redis transport.
    """
    return {
        "broker_url": celery_url(access.url),
        # Only says that there is TLS; how is said by the connection options below.
        "broker_use_ssl": {} if access.tls is None else {"ssl_cert_reqs": "required"},
        "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {
            "priority_steps": [0],
            "socket_keepalive": True,
            "health_check_interval": 25,
            "client_name": client_name,
            "connection_options": access.connection_options,
            **transport_options,
        },
        # Nothing but JSON is ever decoded.
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
    }
