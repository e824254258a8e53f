"""The gate of new connections, without a Redis."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from tachikoma.redis.gate import NotReconciled, guarded, replid_in

REPLY = b"# Replication\r\nrole:master\r\nmaster_replid:0af3\r\nmaster_replid2:0000\r\n"


class Connection:
    def __init__(self) -> None:
        self.steps: list[str] = []

    async def on_connect(self) -> None:
        self.steps.append("login")

    async def disconnect(self, nowait: bool = False) -> None:
        self.steps.append("closed")


class Gate:
    def __init__(self, error: BaseException | None = None) -> None:
        self._error = error

    async def admit(self, connection: Any) -> None:
        connection.steps.append("gate")
        if self._error is not None:
            raise self._error


def test_the_replication_id_is_read_from_the_reply() -> None:
    assert replid_in(REPLY) == "0af3"
    assert replid_in(b"# Replication\r\n") == ""


async def test_a_connection_passes_the_gate_after_its_login() -> None:
    connection = Connection()
    await guarded(Gate())(connection)
    assert connection.steps == ["login", "gate"]


@pytest.mark.parametrize("error", [NotReconciled(), asyncio.CancelledError()])
async def test_a_connection_that_was_not_admitted_is_closed(error: BaseException) -> None:
    connection = Connection()
    with pytest.raises(type(error)):
        await guarded(Gate(error))(connection)
    assert connection.steps == ["login", "gate", "closed"]


def test_a_life_that_is_not_recorded_is_a_connection_that_may_be_tried_again() -> None:
    assert isinstance(NotReconciled(), RedisConnectionError)
    assert "check that an orchestrator is running" in str(NotReconciled())
