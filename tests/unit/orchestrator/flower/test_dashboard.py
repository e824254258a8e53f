"""Flower's gate: a password for everything but the health check, and nothing that could change something."""

from __future__ import annotations

import asyncio
import base64
import urllib.error
import urllib.request
from collections.abc import AsyncIterator

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from patience import PATIENCE_SECONDS
from tachikoma.redis.access import RedisAccess
from tachikoma.vocabulary.addresses import HostPort
from tachikoma_orchestrator.flower.dashboard import _dashboard

USERS = ["alice:secret", "bob:other"]


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """Flower without Redis: it starts, and waits."""
    access = RedisAccess("unix:///nowhere/redis.sock")
    dashboard = _dashboard(access, HostPort("127.0.0.1", 0), USERS, None)
    [listening] = bind_sockets(0, "127.0.0.1")
    server = HTTPServer(dashboard)
    server.add_socket(listening)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.stop()
    await server.close_all_connections()
    dashboard.executor.shutdown()


async def ask(url: str, path: str, user: str = "", method: str = "GET") -> tuple[int, str]:
    def call() -> tuple[int, str]:
        request = urllib.request.Request(url + path, method=method)
        if user:
            request.add_header("Authorization", f"Basic {base64.b64encode(user.encode()).decode()}")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(call)


async def test_only_the_health_check_is_open(url: str) -> None:
    assert (await ask(url, "/healthcheck"))[0] == 200
    for path in ("/", "/workers", "/tasks", "/broker", "/static/css/flower.css", "/api/tasks"):
        status, text = await ask(url, path)
        assert (status, text) == (401, "a user and a password are required\n"), path


@pytest.mark.parametrize("user", ["alice:wrong", "alice:", "carol:secret", "alice", "alice:secret2", "é:x"])
async def test_a_wrong_password_opens_nothing(url: str, user: str) -> None:
    assert (await ask(url, "/workers", user))[0] == 401


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("path", ["/workers", "/tasks", "/broker"])
async def test_each_user_sees_the_pages(url: str, user: str, path: str) -> None:
    status, text = await ask(url, path, user)
    assert status == 200
    assert "<html" in text


@pytest.mark.parametrize("path", ["/api/tasks", "/api/worker/shutdown/x", "/metrics", "/login", "/logout"])
async def test_closed_paths_are_closed_to_everybody(url: str, path: str) -> None:
    for method in ("GET", "POST"):
        status, text = await ask(url, path, USERS[0], method)
        assert status == 403
        assert text.startswith("this Flower is read-only")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_nothing_can_be_changed(url: str, method: str) -> None:
    for path in ("/workers", "/tasks", "/task/x", "/broker"):
        assert (await ask(url, path, USERS[0], method))[0] == 403
