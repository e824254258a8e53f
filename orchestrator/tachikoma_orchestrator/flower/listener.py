"""The listener's side of Celery's events, for a process that may read no key: Flower."""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.app.control import Control
from kombu.utils.encoding import bytes_to_str

from tachikoma.redis import celery_broker, keys
from tachikoma.redis.access import RedisAccess

__all__ = ["listening_app"]


class EventChannel(celery_broker.QueueChannel):
    """A channel that listens without writing: an exchange of the type `fanout` is a channel of Redis with its name."""

    def _new_queue(self, queue: str, **_: Any) -> None:
        # The queue has no key in Redis, so there is none to create, to expire or to delete.
        return

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        queues: dict[str, tuple[str, str]] = self._fanout_queues  # type: ignore[attr-defined]
        queues[queue] = (exchange, routing_key.replace("#", "*"))

    def _handle_message(self, client: Any, r: Any) -> Any:
        if bytes_to_str(r[0]) == "psubscribe":
            # The subscription is active only now: an earlier announcement could miss events. Also after a reconnect.
            with self.conn_or_acquire() as connection:
                connection.publish(keys.EVENTS_WANTED, "1")
        return super()._handle_message(client, r)  # type: ignore[misc]


class EventTransport(celery_broker.BrokerTransport):
    """The transport in Flower's process."""

    Channel = EventChannel


class NoControl(Control):
    """Remote control that sends nothing: agents take none, and Flower's user in Redis may send none."""

    def broadcast(self, *_: Any, **__: Any) -> None:
        """Send nothing."""
        return


def listening_app(access: RedisAccess) -> Celery:
    """Return a Celery application that listens to events and can do nothing else.

    Args:
        access: Redis, as the user `flower`.
    """
    celery_broker.install(EventTransport)
    app = Celery("tachikoma", set_as_current=True, control=NoControl)
    app.conf.update(
        **celery_broker.settings(access, client_name="flower"),
        task_default_queue="none",
        timezone=None,
    )
    app.finalize()
    return app
