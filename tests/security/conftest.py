"""The whole system under the eyes of somebody who means it harm, on both servers it runs on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as redis_py

from tachikoma import Client
from tachikoma.dev.stack import Stack

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from support import prepare


def _forget_denials(stack: Stack) -> None:
    """Where the end-to-end tests run too, they look for some in every stack that ends."""
    with redis_py.Redis(**stack.redis_admin) as redis:
        redis.acl_log_reset()


@pytest.fixture(scope="session")
def tls_stack(tmp_path_factory: pytest.TempPathFactory, debian: Path) -> Iterator[Stack]:
    """Debian's redis-server, reached over TLS and nothing else by all parts."""
    data = prepare(tmp_path_factory.mktemp("tls"))
    with Stack(data, agents=2, redis_server=debian, redis_tls=True, submitter=True) as running:
        yield running
        _forget_denials(running)


@pytest.fixture(scope="session")
def valkey_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The embedded Valkey."""
    with Stack(prepare(tmp_path_factory.mktemp("valkey")), agents=2) as running:
        yield running
        _forget_denials(running)


@pytest.fixture(params=["tls_stack", "valkey_stack"])
def stack(request: pytest.FixtureRequest) -> Stack:
    """Each of the two. Tests leave them as they were."""
    running: Stack = request.getfixturevalue(request.param)
    return running


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.profile()) as connected:
        yield connected


@pytest.fixture
def admin(stack: Stack) -> Iterator[redis_py.Redis]:
    """All rights, on the stack's private socket; with an empty ACL LOG."""
    with redis_py.Redis(**stack.redis_admin, decode_responses=True) as redis:
        redis.acl_log_reset()
        yield redis
