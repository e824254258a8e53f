"""The listener may read no key and control no worker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tachikoma.redis import keys
from tachikoma.redis.access import RedisAccess
from tachikoma_orchestrator.flower.listener import EventChannel, NoControl, listening_app


def test_remote_control_sends_nothing() -> None:
    app = listening_app(RedisAccess("unix:///nowhere/redis.sock"))
    assert isinstance(app.control, NoControl)
    # There is no server, so anything that is sent would fail.
    assert app.control.broadcast("shutdown") is None
    assert app.control.shutdown() is None
    assert app.control.revoke("e1", terminate=True) is None


class Recording(EventChannel):
    """A channel without a connection."""

    def __init__(self) -> None:
        self._fanout_queues: dict[str, tuple[str, str]] = {}
        self.published: list[tuple[str, str]] = []

    def conn_or_acquire(self, client: Any = None) -> Any:
        return self

    def __enter__(self) -> Any:
        return SimpleNamespace(publish=lambda *args: self.published.append(args))

    def __exit__(self, *_: object) -> None:
        return


def test_a_queue_is_a_channel_of_redis_and_has_no_key() -> None:
    channel = Recording()
    channel._new_queue("events", auto_delete=True)
    channel._queue_bind("celeryev", "#", "", "events")
    assert channel._fanout_queues == {"events": ("celeryev", "*")}


@pytest.mark.parametrize(("kind", "published"), [(b"psubscribe", 1), (b"pmessage", 0), (b"pong", 0)])
def test_a_listener_announces_itself_once_its_subscription_is_active(
    kind: bytes, published: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = Recording()
    base: Any = EventChannel.__mro__[1]
    monkeypatch.setattr(base, "_handle_message", lambda *_: "handled", raising=False)
    assert channel._handle_message(None, [kind, b"x", b"y"]) == "handled"
    assert channel.published == [(keys.EVENTS_WANTED, "1")] * published
