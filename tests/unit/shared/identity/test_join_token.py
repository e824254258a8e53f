"""Tokens, the certificate authority, the files of identities, and when one is renewed."""

from __future__ import annotations

import datetime as dt
import socket
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tachikoma.cli.authority import ca
from tachikoma.errors import ConfigurationError, InvalidRequest, Unavailable
from tachikoma.identity.authority import BACKDATE, CertificateAuthority, issued_at, new_key, private_pem
from tachikoma.identity.bundles import TrustBundle
from tachikoma.identity.certificates import dns_names
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.files import BUNDLE_FILE, CERTIFICATE_FILE, KEY_FILE, finish_writing, write_identity
from tachikoma.identity.join_token import Joined, JoinToken, agent_of
from tachikoma.identity.spiffe import InvalidIdentity, SpiffeId, agent_id
from tachikoma.identity.svid import Svid
from tachikoma_orchestrator.api.join_service import MAX_ADDRESSES, MAX_REFUSALS, Attempts
from tachikoma_orchestrator.processes.settings import OrchestratorSettings
from tachikoma_worker.command import worker
from tachikoma_worker.engine.joining import join
from tachikoma_worker.engine.renewal import Renewal, due

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
        {"id": f"spiffe://{DOMAIN}/user/root"},
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


@pytest.mark.parametrize("path", ["user/web-1", "agent", "agent/a/b", "agent/a.b", "agentx/a", "service/agent"])
def test_an_id_that_is_no_agents_names_none(path: str) -> None:
    assert agent_of(SpiffeId.parse(f"spiffe://{DOMAIN}/{path}")) == ""
    assert agent_of(WEB) == "web-1"


# --- the authority ----------------------------------------------------------------------------------------------------


def test_an_authority_under_another_is_trusted_through_it(root: CertificateAuthority, tmp_path: Path) -> None:
    CertificateAuthority.create(tmp_path, DOMAIN, name="Agents", lifetime=timedelta(days=99), under=root)
    below = CertificateAuthority.load(tmp_path)
    assert below.not_after <= root.not_after
    leaf = below.sign(new_key().public_key(), WEB, lifetime=timedelta(days=999))
    assert leaf.not_valid_after_utc <= root.not_after
    chain = x509.load_pem_x509_certificates(below.chain(leaf))
    assert chain == [leaf, below.certificate]
    assert TrustBundle(DOMAIN, [root.certificate]).verify(chain[0], chain[1:]) == WEB
    assert below.issued(leaf)
    assert not root.issued(leaf)
    # And one below that is not, however it was made.
    lower = CertificateAuthority.create(tmp_path / "b", DOMAIN, name="x", lifetime=timedelta(days=1), under=below)
    lowest = x509.load_pem_x509_certificates(lower.chain(lower.sign(new_key().public_key(), WEB, lifetime=BACKDATE)))
    assert len(lowest) == 3
    with pytest.raises(InvalidIdentity):
        TrustBundle(DOMAIN, [root.certificate]).verify(lowest[0], lowest[1:])


def test_a_key_that_everybody_can_read_is_not_used(tmp_path: Path) -> None:
    CertificateAuthority.create(tmp_path, DOMAIN, name="x", lifetime=timedelta(days=1))
    assert stat.S_IMODE((tmp_path / "ca_key.pem").stat().st_mode) == 0o600
    (tmp_path / "ca_key.pem").chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod"):
        CertificateAuthority.load(tmp_path)


def test_what_is_no_authority_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="ca init"):
        CertificateAuthority.load(tmp_path)
    CertificateAuthority.create(tmp_path, DOMAIN, name="x", lifetime=timedelta(days=1))
    (tmp_path / "ca_key.pem").write_bytes(private_pem(new_key()))
    with pytest.raises(ConfigurationError, match="do not belong together"):
        CertificateAuthority.load(tmp_path)


def test_the_command_line_makes_authorities_and_identities(tmp_path: Path) -> None:
    def run(*arguments: str) -> int:
        return CliRunner().invoke(ca, [str(part) for part in arguments]).exit_code

    top, below, out = str(tmp_path / "top"), str(tmp_path / "below"), str(tmp_path / "out")
    assert run("init", top, "--trust-domain", DOMAIN) == 0
    assert run("init", top, "--trust-domain", DOMAIN) != 0
    assert run("init", below, "--trust-domain", "other.example", "--under", top) != 0
    assert run("init", below, "--trust-domain", DOMAIN, "--under", top, "--lifetime", "24h") == 0
    identity = ("--bundle", f"{top}/ca.pem", "--identity", out)
    assert run("issue", below, "spiffe://other.example/user/alice", *identity) != 0
    assert run("issue", below, f"spiffe://{DOMAIN}/service/orchestrator", *identity, "--dns", "orch.example") == 0
    svid = FileSvidSource(tmp_path / "out").current()
    svid.verify()
    assert dns_names(svid.chain[0]) == ["orch.example"]


# --- files ------------------------------------------------------------------------------------------------------------


def identity(root: CertificateAuthority) -> dict[str, bytes]:
    key = new_key()
    leaf = root.sign(key.public_key(), WEB, lifetime=timedelta(hours=1))
    bundle = root.certificate.public_bytes(Encoding.PEM)
    return {"key_pem": private_pem(key), "certificate_pem": root.chain(leaf), "bundle_pem": bundle}


class Crash(Exception):
    """The host lost its power."""


def test_wherever_a_crash_interrupts_it_an_identity_is_the_old_or_the_new_one(
    root: CertificateAuthority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, whole = 0, 0
    for crash_at in range(100):
        folder = tmp_path / str(crash_at)
        old, new = identity(root), identity(root)
        write_identity(folder, **old)
        steps = 0

        def step(crash_at: int = crash_at) -> None:
            nonlocal steps
            steps += 1
            if steps > crash_at:
                raise Crash

        with monkeypatch.context() as patch:
            for name in ("replace", "rename", "mkdir", "rmdir"):
                real = getattr(Path, name)

                def either(self: Path, *arguments: object, real: object = real, **options: object) -> object:
                    step()
                    return real(self, *arguments, **options)  # type: ignore[operator]

                patch.setattr(Path, name, either)
            try:
                write_identity(folder, **new)
            except Crash:
                pass
            else:
                whole += 1
        finish_writing(folder)
        found = FileSvidSource(folder).current()
        assert found.certificate_pem in (old["certificate_pem"], new["certificate_pem"])
        assert sorted(path.name for path in folder.iterdir()) == sorted([CERTIFICATE_FILE, KEY_FILE, BUNDLE_FILE])
        if whole:
            break
    assert steps > 6
    assert found.certificate_pem == new["certificate_pem"]


def test_nobody_else_can_read_an_identity(root: CertificateAuthority, tmp_path: Path) -> None:
    write_identity(tmp_path / "a", **identity(root))
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "a" / KEY_FILE).stat().st_mode) == 0o600


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
