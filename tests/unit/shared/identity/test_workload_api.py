"""An identity from a real Workload API on a unix socket."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from spiffe._proto import workload_pb2 as pb
from spiffe._proto import workload_pb2_grpc

from authority import Authority
from patience import PATIENCE_SECONDS
from tachikoma.client.profile import Profile
from tachikoma.errors import ConfigurationError
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.files import BUNDLE_FILE, CERTIFICATE_FILE
from tachikoma.identity.open import ENDPOINT_VARIABLE, open_identity
from tachikoma.identity.spiffe import InvalidIdentity, SpiffeId
from tachikoma.identity.workload_api import WorkloadSvidSource
from workload_api import WorkloadApi

DOMAIN, PARTNER = "tachikoma.local", "partner.example"
ALICE, BOB, GUEST = f"spiffe://{DOMAIN}/user/alice", f"spiffe://{DOMAIN}/user/bob", f"spiffe://{PARTNER}/user/guest"


def wait_until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"did not come true: {what}")
        time.sleep(0.005)


@pytest.fixture
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkloadApi]:
    with WorkloadApi(tmp_path_factory.mktemp("api") / "agent.sock") as running:
        yield running


@pytest.fixture
def source(api: WorkloadApi, authority: Authority) -> Iterator[WorkloadSvidSource]:
    api.give(authority.files(ALICE))
    opened = WorkloadSvidSource(api.endpoint)
    yield opened
    opened.close()


def test_the_identity_comes_with_its_key_and_its_bundles(
    api: WorkloadApi, authority: Authority, new_authority: Any
) -> None:
    partner = new_authority(PARTNER)
    api.give(authority.files(ALICE), {PARTNER: partner.pem})
    source = WorkloadSvidSource(api.endpoint)
    svid = source.current()
    assert svid.spiffe_id == SpiffeId.parse(ALICE)
    svid.verify()
    assert svid.bundles.verify(partner.leaf(GUEST)[0], []) == SpiffeId.parse(GUEST)
    with pytest.raises(InvalidIdentity, match="not trusted"):
        svid.bundles.verify(partner.leaf(ALICE)[0], [])
    assert source.place == api.endpoint
    source.close()


def test_an_intermediate_comes_along(api: WorkloadApi, authority: Authority, new_authority: Any) -> None:
    api.give(authority.files(ALICE, via=new_authority(parent=authority)))
    source = WorkloadSvidSource(api.endpoint)
    # What comes in the chain is what is sent to others.
    assert len(source.current().chain) == source.current().certificate_pem.count(b"BEGIN") >= 1
    source.close()


def test_a_new_identity_is_taken_as_it_comes(api: WorkloadApi, source: WorkloadSvidSource, authority: Any) -> None:
    for _ in range(5):
        files = authority.files(ALICE)
        api.give(files)
        wait_until(lambda given=files: source.current().certificate_pem == given[CERTIFICATE_FILE], "the new is used")
    # The stream stayed.
    assert api.streams == 1


def test_a_removed_root_goes_at_once(
    api: WorkloadApi, source: WorkloadSvidSource, authority: Any, new_authority: Any
) -> None:
    new = new_authority()
    api.give({**new.files(ALICE), BUNDLE_FILE: authority.pem + new.pem})
    wait_until(lambda: len(source.current().bundle.roots) == 2, "both are trusted")
    api.give(new.files(ALICE))
    wait_until(lambda: source.current().bundle.roots == (new.certificate,), "only the new one is")
    source.current().verify()


@pytest.mark.parametrize("what", ["rsa", "newline", "stranger", "space"])
@pytest.mark.slow
def test_what_cannot_be_used_is_not_taken_and_the_next_is(
    api: WorkloadApi, source: WorkloadSvidSource, authority: Any, stranger: Any, what: str
) -> None:
    old = source.current()
    bad = {
        "rsa": lambda: authority.files(ALICE, key=rsa.generate_private_key(65537, 2048)),
        "newline": lambda: authority.files(ALICE + "\n"),
        "stranger": lambda: {**stranger.files(ALICE), BUNDLE_FILE: authority.pem},
        "space": lambda: authority.files(f"spiffe://{DOMAIN}/user/al ice"),
    }
    api.give(bad[what]())
    api.give(good := authority.files(BOB))
    wait_until(lambda: source.current().spiffe_id == SpiffeId.parse(BOB), "the good one is used")
    assert source.current().certificate_pem == good["svid.pem"]
    assert old.spiffe_id == SpiffeId.parse(ALICE)


def test_the_identity_outlives_the_agent_and_is_renewed_when_it_is_back(
    authority: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    socket = tmp_path_factory.mktemp("api") / "agent.sock"
    with WorkloadApi(socket) as first:
        first.give(authority.files(ALICE))
        source = WorkloadSvidSource(first.endpoint)
    assert source.current().spiffe_id == SpiffeId.parse(ALICE)
    with WorkloadApi(socket) as second:
        second.give(authority.files(BOB))
        wait_until(lambda: source.current().spiffe_id == SpiffeId.parse(BOB), "the next agent is heard")
        source.close()


class _Refusing(workload_pb2_grpc.SpiffeWorkloadAPIServicer):
    """Refuses for good, in the eyes of the standard's clients, as long as it is told to."""

    def __init__(self) -> None:
        self.answer: pb.X509SVIDResponse | None = None
        self.asked = 0

    def FetchX509SVID(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        self.asked += 1
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no entry")
        yield


def test_no_identity_in_time_is_told_with_the_reason(tmp_path_factory: pytest.TempPathFactory) -> None:
    socket = tmp_path_factory.mktemp("api") / "agent.sock"
    server, refusing = grpc.server(ThreadPoolExecutor(2)), _Refusing()
    workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server(refusing, server)
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    try:
        with pytest.raises(ConfigurationError, match=r"gave this process no identity in 0\.5 s: .*INVALID_ARGUMENT"):
            WorkloadSvidSource(f"unix://{socket}", first_seconds=0.5)
        assert refusing.asked >= 1
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("endpoint", ["unix:///nowhere/agent.sock", "unix:", "unix://host/x"])
def test_an_endpoint_that_is_none_is_told(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot use the Workload API"):
        WorkloadSvidSource(endpoint)


# --- which source -----------------------------------------------------------------------------------------------------


def test_the_environment_names_the_workload_api_where_nothing_is_given(
    api: WorkloadApi, authority: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.give(authority.files(ALICE))
    authority.write(tmp_path, BOB)
    monkeypatch.setenv(ENDPOINT_VARIABLE, api.endpoint)
    source = open_identity(None)
    assert isinstance(source, WorkloadSvidSource)
    assert source.current().spiffe_id == SpiffeId.parse(ALICE)
    source.close()
    # What is given counts more.
    assert isinstance(open_identity(tmp_path), FileSvidSource)
    assert open_identity(str(tmp_path)).current().spiffe_id == SpiffeId.parse(BOB)


def test_a_profile_may_name_the_workload_api_or_nothing(api: WorkloadApi, authority: Any, tmp_path: Path) -> None:
    api.give(authority.files(ALICE))
    path = tmp_path / "profile.json"
    for place in (api.endpoint, tmp_path, None):
        Profile(address="x:1", server_name="s", identity=place).save(path)
        assert Profile.load(path).identity == place
    source = open_identity(api.endpoint)
    assert source.current().spiffe_id == SpiffeId.parse(ALICE)
    source.close()


@pytest.mark.parametrize(("value", "told"), [(None, "no identity is configured"), ("tcp://127.0.0.1:1", "only unix")])
def test_without_any_source_it_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, value: str | None, told: str
) -> None:
    monkeypatch.delenv(ENDPOINT_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(ENDPOINT_VARIABLE, value)
    with pytest.raises(ConfigurationError, match=f"{told}.*|.*{ENDPOINT_VARIABLE}"):
        open_identity(None)
