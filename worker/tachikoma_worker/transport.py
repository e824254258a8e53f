"""kombu's Redis transport, for a worker that must outlive what its Redis and its queue do.

Stock kombu lets two things through that end a Celery worker: an error that Redis answers to `BRPOP` (a full disk or
memory, `MISCONF` and `OOM`; a failover, `READONLY`), and a list element that is no message.

Of a message only the order and its task id go on to Celery (`plain`). What else Celery heeds in one (other tasks,
encodings, compression, times, links, chords, groups) whoever owns Redis could say as well, and nothing here needs it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import structlog
from kombu.transport import TRANSPORT_ALIASES, redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ResponseError

from tachikoma.redis_access import BrokerTlsConnection

__all__ = ["TASK_NAME", "AgentTransport", "install", "plain"]

log = structlog.get_logger(__name__)

#: As in `tachikoma_orchestrator.dispatch`, which must not be imported here.
TASK_NAME = "tachikoma.execute"
#: Celery connects again at once after a broken connection; a Redis that only refuses is asked no faster than this.
REFUSED_SECONDS = 1.0


def plain(message: dict[str, Any], queue: str) -> dict[str, Any]:
    """A message with the order and the task id of another one, and nothing else of it.

    Raises:
        ValueError, TypeError, KeyError, RecursionError: it is none that the orchestrator makes.
    """
    headers, body = message["headers"], message["body"]
    if headers["task"] != TASK_NAME or message["content-type"] != "application/json":
        raise ValueError(f"is no order: {str(headers['task'])[:80]!r} as {str(message['content-type'])[:80]!r}")
    (order,), _, _ = json.loads(body)
    for text in (order, headers["id"]):
        if not isinstance(text, str) or not text.isascii():
            raise TypeError("the order or its id is no text")
    return {
        "body": json.dumps([[order], {}, {}]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": TASK_NAME, "id": headers["id"], "lang": "py", "ignore_result": True},
        "properties": {
            "delivery_tag": str(uuid4()),
            "delivery_info": {"exchange": "", "routing_key": queue},
        },
    }


class AgentChannel(redis.Channel):
    """Reads the agent's queue."""

    from_transport_options = (*redis.Channel.from_transport_options, "connection_options")
    connection_class_ssl = BrokerTlsConnection
    #: Credentials and certificates, as `tachikoma.redis_access` gives them.
    connection_options: Mapping[str, Any] = MappingProxyType({})

    def _connparams(self, asynchronous: bool = False) -> Any:
        return {**super()._connparams(asynchronous), **self.connection_options}  # type: ignore[misc]

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        # The orchestrator's script puts orders on the queue itself: nobody asks which exchange leads there, and the
        # agent needs no right to say so.
        return

    def _size(self, queue: str) -> int:
        # What a declaration answers with; nobody looks at it, and so the agent needs no right to ask.
        return 0

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]
        except ResponseError as error:
            log.warning("queue.refused", error=str(error)[:300])
            # In the hub's thread, which has nothing else to do then; commands run in the engine's.
            time.sleep(REFUSED_SECONDS)
            raise RedisConnectionError(f"Redis refuses: {error}") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            # It was taken off the list already; nobody who may give orders wrote it.
            log.warning("message.unreadable", error=repr(error)[:300])
            return True


class AgentTransport(redis.Transport):
    """The transport of `redis://`, `rediss://` and `redis+socket://` in an agent's worker."""

    Channel = AgentChannel
    #: Rights that were taken away may come back, as a server may: the worker waits, and its commands go on.
    connection_errors = (*redis.Transport.connection_errors, NoPermissionError)

    def _deliver(self, message: Any, queue: Any) -> None:
        super()._deliver(plain(message, queue), queue)


def install() -> None:
    """Let this process's Celery use it."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:{AgentTransport.__name__}"
