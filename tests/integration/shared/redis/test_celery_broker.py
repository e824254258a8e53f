"""kombu on a real Redis that refuses commands: that is a broken connection, and no reason to end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis as redis_py
from celery import Celery
from kombu import Connection
from redis.exceptions import ResponseError

from tachikoma.redis import celery_broker
from tachikoma.redis.access import RedisAccess

#: Settings with which Redis refuses writes, and those without.
REFUSALS = {
    "NOREPLICAS": ({"min-replicas-to-write": "1"}, {"min-replicas-to-write": "0"}),
    "OOM": ({"maxmemory": "1"}, {"maxmemory": "0"}),
}


@pytest.fixture
def connection(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    # kombu remembers for a process which transport it resolved first.
    monkeypatch.setattr("kombu.transport._transport_cache", {})
    celery_broker.install()
    app = Celery()
    app.conf.update(celery_broker.settings(RedisAccess(redis_url), client_name="test"))
    with app.connection_for_read() as made:
        yield made


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_redis_that_refuses_writes_is_away_for_celery(redis_url: str, connection: Connection, kind: str) -> None:
    refused, taken = REFUSALS[kind]
    channel = connection.channel()
    with redis_py.Redis.from_url(redis_url) as admin:
        admin.flushall()
        try:
            for name, value in refused.items():
                admin.config_set(name, value)
            # Celery's hub does this regularly, and at each new connection.
            assert channel.qos.restore_visible() is None
            with pytest.raises(ResponseError, match=r"replicas|memory") as caught:
                channel._put("queue", {"properties": {"priority": 0}})
            assert isinstance(caught.value, connection.connection_errors)
        finally:
            for name, value in taken.items():
                admin.config_set(name, value)
        channel._put("queue", {"properties": {"priority": 0}})
        assert admin.llen("queue") == 1
        admin.flushall()
