"""Tokens with which hosts join, and the renewal of the certificates of such hosts."""

from __future__ import annotations

import datetime as dt
import socket
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tachikoma.client.membership.joining import join
from tachikoma.client.membership.renewal import Renewal, due
from tachikoma.errors import ConfigurationError, InvalidRequest, Unavailable
from tachikoma.identity.authority import CertificateAuthority, issued_at, new_key, private_pem
from tachikoma.identity.files import write_identity
from tachikoma.identity.join_token import Joined, JoinToken, agent_of
from tachikoma.identity.spiffe import SpiffeId, agent_id
from tachikoma.identity.svid import Svid
from tachikoma_orchestrator.api.join_service import MAX_ADDRESSES, MAX_REFUSALS, Attempts
from tachikoma_orchestrator.processes.settings import OrchestratorSettings
from tachikoma_worker.command import worker

DOMAIN = "tachikoma.local"
WEB = agent_id(DOMAIN, "web-1")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    folder = tmp_path_factory.mktemp("root")
    return CertificateAuthority.create(folder, DOMAIN, name="Root", lifetime=timedelta(days=9))


def token(root: CertificateAuthority, **values: object) -> JoinToken:
    right = {
        "id": str(WEB),
        "address": "orch.example:8535",
        "server_name": "orch.example",
        "root": root.certificate.public_bytes(Encoding.DER),
        "secret": b"s" * 32,
    }
    return JoinToken.model_validate({**right, **values})


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_token_is_one_word_and_comes_apart_again(root: CertificateAuthority) -> None:
    text = str(token(root))
    assert text.isascii()
    assert len(text.split()) == 1
    assert text.replace("-", "").replace("_", "").isalnum()
    assert JoinToken.parse(f"\n {text} \n") == token(root)


@pytest.mark.parametrize("part", [slice(1, None), slice(None, -1), slice(None, 100), slice(0, 0)])
def test_a_part_of_a_token_is_none_and_is_not_told_again(root: CertificateAuthority, part: slice) -> None:
    text = str(token(root))[part]
    with pytest.raises(InvalidRequest) as caught:
        JoinToken.parse(text)
    assert not text or text[:40] not in str(caught.value)


@given(
    st.text() | st.text().map(lambda text: "tachikoma-join-" + text) | st.binary().map(lambda raw: raw.decode("latin1"))
)
def test_no_text_makes_the_parser_fail_otherwise(text: str) -> None:
    with pytest.raises(InvalidRequest):
        JoinToken.parse(text)


@pytest.mark.parametrize(
    "values",
    [
        {"id": f"spiffe://{DOMAIN}/service/orchestrator"},
        {"id": f"spiffe://{DOMAIN}/agent/a/b"},
        {"id": "x"},
        {"secret": b"s" * 31},
        {"root": b"x"},
        {"address": ""},
        {"server_name": ""},
    ],
)
def test_a_token_of_somebody_elses_making_is_looked_at(root: CertificateAuthority, values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        JoinToken.model_validate({**token(root).model_dump(by_alias=False), **values})


@pytest.mark.parametrize(
    "path", ["user/web-1", "user/a.b", "agent", "agent/a/b", "agent/a.b", "agentx/a", "service/agent"]
)
def test_an_id_that_is_no_agents_names_none(path: str) -> None:
    assert agent_of(SpiffeId.parse(f"spiffe://{DOMAIN}/{path}")) == ""
    assert agent_of(WEB) == "web-1"


def identity(root: CertificateAuthority) -> dict[str, bytes]:
    key = new_key()
    leaf = root.sign(key.public_key(), WEB, lifetime=timedelta(hours=1))
    bundle = root.certificate.public_bytes(Encoding.PEM)
    return {"key_pem": private_pem(key), "certificate_pem": root.chain(leaf), "bundle_pem": bundle}


# --- renewal ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lifetime", [timedelta(seconds=4), timedelta(minutes=5), timedelta(hours=24)])
def test_a_certificate_is_renewed_at_half_of_its_life(root: CertificateAuthority, lifetime: timedelta) -> None:
    key = new_key()
    leaf = root.sign(key.public_key(), WEB, lifetime=lifetime)
    svid = Svid.load(root.chain(leaf), private_pem(key), root.certificate.public_bytes(Encoding.PEM))
    assert abs(issued_at(leaf) - dt.datetime.now(dt.UTC)) < timedelta(seconds=5)
    assert abs(due(svid, 0.5) - lifetime / 2) < timedelta(seconds=3)


def test_only_what_joined_is_renewed_by_its_worker(root: CertificateAuthority, tmp_path: Path) -> None:
    assert Renewal.prepare("unix:///run/spire.sock") is None
    assert Renewal.prepare(None) is None
    write_identity(tmp_path, **identity(root))
    assert Renewal.prepare(tmp_path) is None
    joined = Joined(address="a:1", server_name="b")
    joined.save(tmp_path)
    assert Renewal.prepare(tmp_path) == joined
    (tmp_path / "joined.json").write_text("{")
    with pytest.raises(ConfigurationError):
        Renewal.prepare(tmp_path)


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_an_address_that_was_refused_often_waits_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    attempts = Attempts()
    for _ in range(MAX_REFUSALS):
        assert attempts.wait_seconds("192.0.2.1") == 0
        attempts.refused("192.0.2.1")
    assert attempts.wait_seconds("192.0.2.1") == 60
    assert attempts.wait_seconds("192.0.2.2") == 0
    now += 61
    assert attempts.wait_seconds("192.0.2.1") == 0
    attempts.refused("192.0.2.1")
    assert attempts.wait_seconds("192.0.2.1") == 0


@pytest.mark.slow
def test_everybody_has_one_network_of_ipv6_and_memory_is_bounded() -> None:
    attempts = Attempts()
    for number in range(MAX_REFUSALS):
        attempts.refused(f"2001:db8::{number:x}")
    assert attempts.wait_seconds("2001:db8::ffff") > 0
    assert attempts.wait_seconds("2001:db8:0:1::") == 0
    for number in range(2 * MAX_ADDRESSES):
        attempts.refused(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(attempts._refused) == MAX_ADDRESSES


# --- before anything is asked or told ---------------------------------------------------------------------------------


async def test_a_host_that_has_another_identity_does_not_spend_a_token(
    root: CertificateAuthority, tmp_path: Path
) -> None:
    write_identity(tmp_path, **identity(root))
    other = token(root).model_copy(update={"id": str(agent_id(DOMAIN, "web-2"))})
    with pytest.raises(ConfigurationError, match="agent/web-1"):
        await join(other, tmp_path, tmp_path / "password")


async def test_where_nobody_answers_nothing_is_written(root: CertificateAuthority, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(Unavailable):
        await join(token(root, address=address), tmp_path / "identity", tmp_path / "password")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_token_in_the_place_of_its_files_name_is_not_told(root: CertificateAuthority, tmp_path: Path) -> None:
    text = str(token(root))
    done = CliRunner().invoke(worker, ["join", "--token-file", text, "--identity", str(tmp_path)])
    assert isinstance(done.exception, ConfigurationError)
    assert text not in f"{done.exception}{done.output}"


def test_joining_is_configured_as_a_whole_or_not(tmp_path: Path) -> None:
    given = {"redis_url": "unix:///x", "policy": tmp_path}
    for wrong in ({"ca": tmp_path}, {"join_listen": "127.0.0.1:0"}):
        with pytest.raises(ValueError, match="together"):
            OrchestratorSettings(**given, **wrong)
    for lifetime in ("0s", "31d", "32000h"):
        with pytest.raises(ValueError, match="validation error"):
            OrchestratorSettings(**given, svid_lifetime=lifetime)
