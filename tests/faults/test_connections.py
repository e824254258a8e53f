"""Connections and calls in numbers and sizes that no caller needs: others are served, and the process stays small."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import psutil
import pytest
from support import AGENT, plain_channel, prepare, request, wait_until

from patience import PATIENCE_SECONDS
from tachikoma import Client, ExecState
from tachikoma.dev.stack import Stack
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.exec.v1.remote_execution_pb2_grpc import RemoteExecutionStub
from tachikoma.identity.files import BUNDLE_FILE, CERTIFICATE_FILE, KEY_FILE

MIB = 1024 * 1024
#: Growth of the process that large messages may cause: those that are received at once, and the allocator's slack.
GROWTH_MIB = 150


def memory_mib(stack: Stack) -> float:
    return float(psutil.Process(stack.orchestrator.pid).memory_info().rss / MIB)


@pytest.fixture
def own_stack(tmp_path: Path, redis_server: Path | None) -> Iterator[Stack]:
    with Stack(prepare(tmp_path), redis_server=redis_server) as running:
        yield running


LARGE = b"x" * (60 * MIB)
GZIP = grpc.Compression.Gzip
#: Calls with a message that is larger than any legal one.
LARGE_CALLS: dict[str, Callable[[RemoteExecutionStub], object]] = {
    "request": lambda stub: stub.Execute(
        pb.ExecRequest(agent_id=AGENT, command=["true"], stdin=LARGE), timeout=PATIENCE_SECONDS
    ),
    # 60 KB on the network.
    "compressed request": lambda stub: stub.Execute(
        pb.ExecRequest(agent_id=AGENT, command=["true"], stdin=LARGE), timeout=PATIENCE_SECONDS, compression=GZIP
    ),
    "argument": lambda stub: stub.Submit(
        pb.ExecRequest(agent_id=AGENT, command=["echo", LARGE.decode()]), timeout=PATIENCE_SECONDS
    ),
    "first message of a session": lambda stub: list(
        stub.ExecuteInteractive(
            iter([pb.ExecInput(request=pb.ExecRequest(agent_id=AGENT, command=["cat"], stdin=LARGE))]),
            timeout=PATIENCE_SECONDS,
        )
    ),
    "compressed input of a session": lambda stub: list(
        stub.ExecuteInteractive(
            iter([pb.ExecInput(data=pb.InputData(data=LARGE))]), timeout=PATIENCE_SECONDS, compression=GZIP
        )
    ),
    "targets": lambda stub: stub.SubmitBatch(
        pb.BatchRequest(targets=[LARGE.decode()], command=["true"]), timeout=PATIENCE_SECONDS
    ),
    "reason": lambda stub: stub.DrainAgent(
        pb.DrainAgentRequest(id=AGENT, reason=LARGE.decode()), timeout=PATIENCE_SECONDS, compression=GZIP
    ),
}


@pytest.mark.parametrize(
    ("caller", "call"), [("agent", "request"), ("agent", "targets"), *(("user", call) for call in LARGE_CALLS)]
)
def test_large_messages_do_not_make_the_orchestrator_large(own_stack: Stack, caller: str, call: str) -> None:
    identity = own_stack.identity("user" if caller == "user" else AGENT)
    with Client(own_stack.profile()) as client:
        assert client.execute(request("true")).exit_code == 0
        before = memory_mib(own_stack)

        def send(_: int) -> grpc.StatusCode:
            with plain_channel(own_stack, identity) as channel, pytest.raises(grpc.RpcError) as caught:
                LARGE_CALLS[call](RemoteExecutionStub(channel))
            return caught.value.code()

        with ThreadPoolExecutor(4) as threads:
            codes = set(threads.map(send, range(10)))
        refused = {grpc.StatusCode.RESOURCE_EXHAUSTED}
        if caller == "agent":
            refused |= {grpc.StatusCode.PERMISSION_DENIED}
        assert codes <= refused
        assert memory_mib(own_stack) - before < GROWTH_MIB
        # The largest legal request is served.
        largest = request("wc", "-c", stdin=b"x" * (4 * MIB))
        assert client.execute(largest).stdout == f"{4 * MIB}\n".encode()


def _is_open(connection: ssl.SSLSocket) -> bool:
    """Read what has arrived, and return False if that was the end."""
    connection.settimeout(0)
    try:
        while connection.recv(65536):
            pass
    except ssl.SSLWantReadError:
        return True
    except OSError:
        pass
    return False


def test_connections_beyond_the_bound_are_closed_and_those_without_a_call_end(
    tmp_path: Path, redis_server: Path | None
) -> None:
    environment = {"TACHIKOMA_CONNECTIONS": "5", "TACHIKOMA_CONNECTION_IDLE": "2s", "TACHIKOMA_CONNECTION_AGE": "3s"}
    with Stack(prepare(tmp_path), redis_server=redis_server, environment=environment) as stack:
        folder = stack.identity("user")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(folder / BUNDLE_FILE)
        context.load_cert_chain(folder / CERTIFICATE_FILE, folder / KEY_FILE)
        context.set_alpn_protocols(["h2"])
        host, _, port = stack.address.rpartition(":")
        with ExitStack() as connections:
            opened = []
            for _ in range(12):
                with suppress(OSError):
                    plain = socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS)
                    opened.append(connections.enter_context(context.wrap_socket(plain, server_hostname="x")))
            # On a slow machine the first ones have been idle for too long when the last ones come.
            assert sum(_is_open(connection) for connection in opened) <= 6
            for connection in opened:
                # Closed by the server: it never had a call.
                connection.settimeout(PATIENCE_SECONDS)
                with suppress(ConnectionError, ssl.SSLError):
                    while connection.recv(65536):
                        pass
        with Client(stack.profile()) as client:
            # A call lives on beyond the age of its connection, and the next one gets another connection.
            assert client.execute(request("sleep", "5")).state is ExecState.SUCCEEDED
            # Longer than the age of a connection, which the server measures by its clock.
            time.sleep(3)
            assert client.execute(request("true")).state is ExecState.SUCCEEDED


def test_an_identity_beyond_its_calls_is_refused_with_words(tmp_path: Path, redis_server: Path | None) -> None:
    environment = {"TACHIKOMA_IDENTITY_CALLS": "3"}
    with Stack(prepare(tmp_path), redis_server=redis_server, environment=environment) as stack:
        go = tmp_path / "go"
        marks = [tmp_path / f"mark-{number}" for number in range(3)]
        waiting = [request("sh", "-c", f"touch {mark}; while ! [ -e {go} ]; do sleep 0.1; done") for mark in marks]
        with Client(stack.profile()) as client, ThreadPoolExecutor(4) as threads:
            futures = [threads.submit(client.execute, wanted) for wanted in waiting]
            wait_until(lambda: all(mark.exists() for mark in marks), "all run")
            with plain_channel(stack, stack.identity("user")) as channel, pytest.raises(grpc.RpcError) as caught:
                RemoteExecutionStub(channel).List(pb.ListRequest(), timeout=PATIENCE_SECONDS)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "3 calls in progress, the most for one identity" in caught.value.details()
            go.touch()
            assert [future.result(PATIENCE_SECONDS).state for future in futures] == [ExecState.SUCCEEDED] * 3
