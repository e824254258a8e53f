"""`Client` is `AsyncClient` in a thread of its own."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

import tachikoma
from authority import Authority
from patience import PATIENCE_SECONDS
from tachikoma import AsyncClient, Client, ExecOutput, ExecRequest, NotFound, OutputKind, Profile
from tachikoma.client.interactive import AsyncSession
from tachikoma.client.sync import Session

#: Public names that only one of the two has, and why.
ONLY_SYNC = {"from_profile": "is a short form for scripts"}
CONSTRUCTED = {
    "check_usable": "the synchronous client calls it before each call",
    "close": "each client closes in its own way",
    "profile": "is an attribute",
    "spiffe_id": "is an attribute",
}


def calls(kind: type) -> set[str]:
    """The public methods of a class, without those that are made differently."""
    kinds = [base for base in kind.__mro__ if base.__module__.startswith("tachikoma.")]
    return {
        name
        for base in kinds
        for name, value in vars(base).items()
        if callable(value) and not name.startswith("_") and name not in ONLY_SYNC
    } - set(CONSTRUCTED)


METHODS = sorted(calls(AsyncClient))


@pytest.fixture
def client(authority: Authority, tmp_path: Path) -> Iterator[Client]:
    authority.write(tmp_path, "spiffe://tachikoma.local/user/alice")
    with Client(Profile(address="127.0.0.1:1", server_name="x", identity=tmp_path)) as client:
        yield client


def test_both_have_the_same_methods() -> None:
    assert set(METHODS) == calls(Client)
    assert len(METHODS) == 45
    assert ONLY_SYNC.keys() == {name for name in vars(Client) if not name.startswith("_")} - set(METHODS) - set(
        CONSTRUCTED
    )


@pytest.mark.parametrize("name", [*METHODS, "__init__"])
def test_a_method_takes_the_same_parameters(name: str) -> None:
    ours, original = (inspect.signature(getattr(kind, name)) for kind in (Client, AsyncClient))
    assert list(ours.parameters.values()) == list(original.parameters.values())


@pytest.mark.parametrize("name", METHODS)
def test_a_method_returns_what_the_original_gives(name: str) -> None:
    # Types of the operators' calls are imported for type checkers only (see `tachikoma.client.wire`).
    public = {name: getattr(tachikoma, name) for name in tachikoma.__all__}
    ours, original = (get_type_hints(getattr(kind, name), localns=public) for kind in (Client, AsyncClient))
    returned, expected = ours.pop("return"), original.pop("return")
    assert ours == original
    if get_origin(expected) is AsyncIterator:
        assert (get_origin(returned), get_args(returned)) == (Iterator, get_args(expected))
        assert inspect.signature(getattr(Client, name)).return_annotation == returned
    elif expected is AsyncSession:
        assert returned is Session
        assert inspect.signature(getattr(Client, name)).return_annotation is Session
    else:
        assert returned == expected
        assert inspect.iscoroutinefunction(getattr(AsyncClient, name))
    assert not inspect.iscoroutinefunction(getattr(Client, name))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_documented_under_its_own_name(name: str) -> None:
    method = getattr(Client, name)
    assert method.__doc__ == getattr(AsyncClient, name).__doc__
    assert method.__doc__.splitlines()[0].endswith(".")
    assert (method.__module__, method.__qualname__) == ("tachikoma.client.sync", f"Client.{name}")


def test_a_call_returns_its_result_and_runs_in_the_clients_own_thread(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def call(rpc: object, *, repeat: bool = True) -> Any:
        seen.append(threading.current_thread().name)
        raise NotFound("no such execution")

    seen: list[str] = []
    monkeypatch.setattr(client._async, "_call", call)
    with pytest.raises(NotFound, match="no such execution"):
        client.status("job-7")
    assert seen == ["tachikoma-client"]


def test_a_call_works_where_another_event_loop_runs(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def call(rpc: object, *, repeat: bool = True) -> Any:
        raise NotFound("no such execution")

    async def main() -> None:
        with pytest.raises(NotFound):
            client.cancel("job-7")

    monkeypatch.setattr(client._async, "_call", call)
    asyncio.run(main())


class Source:
    """An output stream that says how far it was read."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.read_items = 0
        self.closed = threading.Event()

    async def read(self) -> AsyncIterator[ExecOutput]:
        try:
            for number in range(1, self.count + 1):
                self.read_items = number
                yield ExecOutput(id="job-7", kind=OutputKind.STDOUT, seq=number, data=b"x")
        finally:
            self.closed.set()


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Source:
    source = Source(5)
    monkeypatch.setattr("tachikoma.client.aio.ModelStream", lambda *_, **__: source)
    return source


def test_a_stream_gives_each_item_when_it_is_asked_for(client: Client, source: Source) -> None:
    stream = client.attach("job-7")
    assert source.read_items == 0
    assert next(stream).seq == 1
    assert source.read_items == 1
    assert [item.seq for item in stream] == [2, 3, 4, 5]
    assert source.closed.is_set()


@pytest.mark.slow
def test_a_stream_that_is_left_is_closed(client: Client, source: Source) -> None:
    for output in client.execute_stream(ExecRequest(agent_id="a", command=("x",))):
        assert output.seq == 1
        break
    assert source.closed.wait(PATIENCE_SECONDS)
    assert source.read_items == 1


def test_an_interrupted_call_is_cancelled(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def call(rpc: object, *, repeat: bool = True) -> Any:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    class Interrupted:
        """A future whose wait is interrupted as by Ctrl-C."""

        def __init__(self, future: Any) -> None:
            self._future = future

        def result(self) -> Any:
            begun.wait(PATIENCE_SECONDS)
            raise KeyboardInterrupt

        def cancel(self) -> Any:
            return self._future.cancel()

    run = asyncio.run_coroutine_threadsafe
    with monkeypatch.context() as patch:
        patch.setattr(client._async, "_call", call)
        patch.setattr(asyncio, "run_coroutine_threadsafe", lambda *given: Interrupted(run(*given)))
        with pytest.raises(KeyboardInterrupt):
            client.agents()
    # Not only requested: the call has ended when the error is raised.
    assert cancelled.is_set()


def test_close_ends_the_thread_and_can_be_repeated(client: Client) -> None:
    assert client._thread.is_alive()
    client.close()
    client.close()
    assert not client._thread.is_alive()


def test_a_client_knows_its_profile_and_identity(client: Client, tmp_path: Path) -> None:
    assert client.spiffe_id == "spiffe://tachikoma.local/user/alice"
    assert client.profile.identity == tmp_path
    path = tmp_path / "profile.json"
    client.profile.save(path)
    with Client.from_profile(path) as other:
        assert other.profile == client.profile
