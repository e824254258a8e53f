"""Certificates and roots change while everything runs, and nobody notices but those who are to be kept out."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from authority import Authority
from patience import PATIENCE_SECONDS
from tachikoma import AsyncClient, ExecRequest, ExecState, OutputKind
from tachikoma.client import wire
from tachikoma.dev.stack import SERVER_NAME, TRUST_DOMAIN, Stack
from tachikoma.exec.v1.remote_execution_pb2_grpc import RemoteExecutionStub
from tachikoma.identity.certificates import key_digest
from tachikoma.identity.files import BUNDLE_FILE, CERTIFICATE_FILE, KEY_FILE, write_private
from tachikoma.identity.spiffe import agent_id, service_id, user_id
from workload_api import WorkloadApi

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from support import prepare, request

#: Between two certificates of everybody who has the Workload API.
ROTATE_SECONDS = 2.0
COMMANDS, STREAMS = 100, 10


class Rotating(Stack):
    """A stack with two roots. Everybody has an identity from the Workload API, but for the last agent: files."""

    def __init__(self, data: Path, sockets: Path) -> None:
        super().__init__(data, agents=2)
        self.old, self.new = Authority(), Authority()
        self.issuer = self.old
        self.bundle = self.old.pem
        self.ids = {
            "orchestrator": service_id(TRUST_DOMAIN, "orchestrator"),
            "user": self.user,
            **{agent: agent_id(TRUST_DOMAIN, agent) for agent in self.agent_ids},
        }
        self.by_files = self.agent_ids[-1]
        self.apis = {name: WorkloadApi(sockets / f"{name}.sock") for name in self.ids if name != self.by_files}

    def identity(self, name: str) -> Any:
        return self.apis[name].endpoint if name in self.apis else super().identity(name)

    def issue_identities(self) -> None:
        self.rotate()

    def rotate(self) -> None:
        """Fresh certificates of the issuer, and the bundle, for everybody."""
        for name, spiffe_id in self.ids.items():
            dns = [SERVER_NAME] if name == "orchestrator" else []
            files = {**self.issuer.files(str(spiffe_id), dns=dns), BUNDLE_FILE: self.bundle}
            if name in self.apis:
                self.apis[name].give(files)
                continue
            folder = super().identity(name)
            folder.mkdir(parents=True, exist_ok=True)
            for file in (BUNDLE_FILE, KEY_FILE, CERTIFICATE_FILE):
                write_private(folder / file, files[file])


@pytest.fixture
def rotating(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rotating]:
    stack = Rotating(prepare(tmp_path), tmp_path_factory.mktemp("api"))
    with ExitStack() as opened:
        for api in stack.apis.values():
            opened.enter_context(api)
        opened.enter_context(stack)
        stopped = threading.Event()

        def rotate() -> None:
            while not stopped.wait(ROTATE_SECONDS):
                stack.rotate()

        rotator = threading.Thread(target=rotate)
        rotator.start()
        opened.callback(rotator.join)
        opened.callback(stopped.set)
        yield stack


def _to(agent: int, *command: str) -> ExecRequest:
    return request(*command, agent_id=f"agent-{agent % 2 + 1}", timeout=300)


async def _follow(client: AsyncClient, wanted: ExecRequest, begun: asyncio.Semaphore) -> tuple[bytes, ExecState]:
    """All output of a stream, and how it ended."""
    output = bytearray()
    async for item in client.execute_stream(wanted):
        if item.kind is OutputKind.STDOUT:
            if not output:
                begun.release()
            output += item.data
        if item.result is not None:
            return bytes(output), item.result.state
    raise AssertionError("a stream ended without a result")


async def _call_always(client: AsyncClient, stop: asyncio.Event) -> int:
    """One call after the other; none may fail."""
    calls = 0
    while not stop.is_set():
        response = await client.execute(_to(calls, "true"))
        assert response.state is ExecState.SUCCEEDED
        calls += 1
    return calls


async def _agents_say(client: AsyncClient, root: Authority, *bundle: Authority) -> None:
    """Wait until all agents say that they stand on a root, and trust a bundle."""
    wanted = (key_digest(root.certificate), {key_digest(item.certificate) for item in bundle})
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            agents = await client.agents()
            if all(agent.trust and (agent.trust.root, set(agent.trust.bundle)) == wanted for agent in agents):
                return
            await asyncio.sleep(0.05)


def _outsider(stack: Rotating, folder: Path) -> grpc.Channel:
    """A plain connection of somebody whose certificate stays the one of the old root."""
    name = str(user_id(TRUST_DOMAIN, "outsider"))
    files = stack.old.files(name)
    credentials = grpc.ssl_channel_credentials(stack.old.pem + stack.new.pem, files[KEY_FILE], files[CERTIFICATE_FILE])
    return grpc.secure_channel(stack.address, credentials, [("grpc.ssl_target_name_override", SERVER_NAME)])


@pytest.mark.long
async def test_a_rollover_of_the_root_under_running_commands_and_open_streams_fails_none(
    rotating: Rotating, tmp_path: Path
) -> None:
    gate, done = tmp_path / "gate", tmp_path / "done"
    os.mkfifo(gate)
    count = f"i=0; while [ ! -e {done} ]; do i=$((i+1)); echo $i; sleep 0.5; done"
    begun, stop = asyncio.Semaphore(0), asyncio.Event()
    async with AsyncClient(rotating.profile()) as client:
        streams = [
            asyncio.create_task(_follow(client, _to(number, "/bin/sh", "-c", count), begun))
            for number in range(STREAMS)
        ]
        commands = [await client.submit(_to(number, "/bin/cat", str(gate))) for number in range(COMMANDS)]
        for _ in streams:
            await begun.acquire()
        calls = asyncio.create_task(_call_always(client, stop))
        # Somebody of the old root who never gets another certificate, with a call that is open.
        outsider = _outsider(rotating, tmp_path)
        stub = RemoteExecutionStub(outsider)
        left = stub.ExecuteStream(wire.request_to_pb(_to(0, "/bin/sh", "-c", count)))
        await asyncio.to_thread(next, left)

        # 1. Both roots are trusted.
        rotating.bundle = rotating.old.pem + rotating.new.pem
        await _agents_say(client, rotating.old, rotating.old, rotating.new)
        # 2. The new one issues.
        rotating.issuer = rotating.new
        await _agents_say(client, rotating.new, rotating.old, rotating.new)
        # 3. The old one is trusted no more.
        rotating.bundle = rotating.new.pem
        await _agents_say(client, rotating.new, rotating.new)

        # It ends what is open of the old root, and takes nothing new of it.
        with pytest.raises(grpc.RpcError) as ended:
            await asyncio.to_thread(lambda: [None for _ in left])
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.RpcError) as refused:
            await asyncio.to_thread(stub.Execute, wire.request_to_pb(_to(0, "true")))
        assert refused.value.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE)
        outsider.close()

        # Nobody else noticed.
        stop.set()
        assert await calls > 0
        done.touch()
        with gate.open("wb"):
            pass
        for output, state in await asyncio.gather(*streams):
            assert state is ExecState.SUCCEEDED
            assert output.decode().split() == [str(number + 1) for number in range(len(output.split()))]
        for status in commands:
            async for item in client.attach(status.id):
                if item.result is not None:
                    assert item.result.state is ExecState.SUCCEEDED, item.result
        assert client._connection._used.bundle.roots == (rotating.new.certificate,)
