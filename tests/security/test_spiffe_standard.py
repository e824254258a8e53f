"""What breaks the SPIFFE standards is refused wherever an identity counts: by gRPC, in an order, and in a receipt.

Every case is a certificate of whoever would be believed in that place, had it been issued rightly. One trust domain is
federated with: TLS trusts its root as well, so that what stands behind TLS has to tell them apart.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import redis as redis_py
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from authority import Authority
from patience import PATIENCE_SECONDS
from tachikoma import Client, ExecState
from tachikoma.client import wire
from tachikoma.dev.stack import SERVER_NAME, TRUST_DOMAIN, Stack
from tachikoma.exec.v1.remote_execution_pb2_grpc import RemoteExecutionStub
from tachikoma.identity.files import FEDERATED_FOLDER, write_private
from tachikoma.identity.signed_messages import OutputDigest, Receipt, WorkOrder
from tachikoma.identity.signing import sign
from tachikoma.identity.spiffe import agent_id, service_id
from tachikoma.redis import keys
from tachikoma.vocabulary.grants import Grant, GrantedExecutable
from tachikoma.vocabulary.identifiers import new_id
from tachikoma_orchestrator.admission.celery_message import MessageFactory

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from support import POLICY, publish_report, request, wait_until

PARTNER = "partner.example"
NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)


class Federated(Stack):
    """A stack whose roots the tests have, and which is federated with a partner."""

    def __init__(self, data: Path) -> None:
        super().__init__(data, agents=1)
        self.root, self.partner = Authority(TRUST_DOMAIN), Authority(PARTNER)

    def issue_identities(self) -> None:
        orchestrator = service_id(TRUST_DOMAIN, "orchestrator")
        for name, spiffe_id in {
            "orchestrator": orchestrator, "user": self.user, "agent-1": agent_id(TRUST_DOMAIN, "agent-1"),
        }.items():  # fmt: skip
            dns = [SERVER_NAME] if spiffe_id == orchestrator else []
            folder = self.identity(name)
            (folder / FEDERATED_FOLDER).mkdir(parents=True)
            write_private(folder / FEDERATED_FOLDER / f"{PARTNER}.pem", self.partner.pem)
            for file, content in self.root.files(str(spiffe_id), dns=dns).items():
                write_private(folder / file, content)


@pytest.fixture(scope="module")
def federated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federated]:
    data = tmp_path_factory.mktemp("federated")
    stack = Federated(data)
    policy = POLICY.format(user=stack.user).replace(
        'subjects: ["', f'subjects: ["spiffe://{PARTNER}/user/guest", "spiffe://{TRUST_DOMAIN}/agent/*", "'
    )
    (data / "policy.yaml").write_text(policy)
    with stack:
        yield stack


@pytest.fixture(scope="module")
def redis(federated: Federated) -> Iterator[redis_py.Redis]:
    client = redis_py.Redis(**federated.redis_admin)
    yield client
    client.close()


#: What makes a chain and a key for an ID, by the rule it breaks.
Make = Callable[[Federated, str], tuple[list[Any], Any]]


def _leaf(*more: str, **options: Any) -> Make:
    def make(stack: Federated, spiffe_id: str) -> tuple[list[Any], Any]:
        certificate, key = stack.root.leaf(spiffe_id, *more, **options)
        return [certificate], key

    return make


def _named(change: Callable[[str], str]) -> Make:
    def make(stack: Federated, spiffe_id: str) -> tuple[list[Any], Any]:
        certificate, key = stack.root.leaf(change(spiffe_id))
        return [certificate], key

    return make


def _usage(*bits: str) -> Make:
    return _leaf(usage=Authority.key_usage(*bits))


def _of_partner(stack: Federated, spiffe_id: str) -> tuple[list[Any], Any]:
    certificate, key = stack.partner.leaf(spiffe_id)
    return [certificate], key


def _of_stranger(stack: Federated, spiffe_id: str) -> tuple[list[Any], Any]:
    stranger = Authority()
    certificate, key = stranger.leaf(spiffe_id)
    return [certificate, stranger.certificate], key


def _of_partners_intermediate(stack: Federated, spiffe_id: str) -> tuple[list[Any], Any]:
    between = Authority(parent=stack.partner)
    certificate, key = between.leaf(spiffe_id)
    return [certificate, between.certificate], key


def _without_its_intermediate(stack: Federated, spiffe_id: str) -> tuple[list[Any], Any]:
    certificate, key = Authority(parent=stack.root).leaf(spiffe_id)
    return [certificate], key


def _by_a_leaf(stack: Federated, spiffe_id: str) -> tuple[list[Any], Any]:
    issuer, issuer_key = stack.root.leaf(f"spiffe://{TRUST_DOMAIN}/user/mallory")
    impostor = Authority()
    impostor.key, impostor.name = issuer_key, issuer.subject
    certificate, key = impostor.leaf(spiffe_id)
    return [certificate, issuer], key


CASES: dict[str, Make] = {
    "two IDs": _leaf(f"spiffe://{TRUST_DOMAIN}/user/mallory"),
    "the same ID twice": lambda stack, spiffe_id: _leaf(spiffe_id)(stack, spiffe_id),
    "an ID and another URI": _leaf("https://example.org/"),
    "a CA": _leaf(ca=True),
    "no key usage": _leaf(usage=None),
    "a key usage that is not critical": _leaf(usage_critical=False),
    "no digital signature": _usage("key_encipherment"),
    "signs certificates": _usage("digital_signature", "key_cert_sign"),
    "signs revocation lists": _usage("digital_signature", "crl_sign"),
    "an extended key usage for servers only": _leaf(extended=[ExtendedKeyUsageOID.SERVER_AUTH]),
    "an extended key usage for clients only": _leaf(extended=[ExtendedKeyUsageOID.CLIENT_AUTH]),
    "expired": _leaf(begin=NOW - 2 * DAY, end=NOW - DAY),
    "not yet valid": _leaf(begin=NOW + DAY, end=NOW + 2 * DAY),
    "a trailing newline": _named(lambda text: text + "\n"),
    "an over-long ID": _named(lambda text: text + "x" * 2048),
    "another scheme": _named(lambda text: text.replace("spiffe:", "https:")),
    "a query": _named(lambda text: text + "?x"),
    "a dot segment": _named(lambda text: text.replace(TRUST_DOMAIN, f"{TRUST_DOMAIN}/x/..")),
    "a federated domain's ID of our root": _named(lambda text: text.replace(TRUST_DOMAIN, PARTNER)),
    "an unknown domain's ID of our root": _named(lambda text: text.replace(TRUST_DOMAIN, "elsewhere.example")),
    "our ID of a federated root": _of_partner,
    "our ID of a federated root's intermediate": _of_partners_intermediate,
    "our ID of a foreign root that is sent along": _of_stranger,
    "an intermediate that is missing": _without_its_intermediate,
    "issued by a leaf": _by_a_leaf,
}
EACH = pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())


def _signer(chain: list[Any], key: Any) -> Any:
    """What `sign` needs of an identity; `Svid.load` would not take most of these."""
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return SimpleNamespace(chain=tuple(chain), signing_key=load_pem_private_key(pem, password=None))


def _call(stack: Federated, chain: list[Any], key: Any, agent_command: str = "true") -> Any:
    """An `Execute` over plain gRPC."""
    credentials = grpc.ssl_channel_credentials(
        stack.root.pem,
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain),
    )
    with grpc.secure_channel(stack.address, credentials, [("grpc.ssl_target_name_override", SERVER_NAME)]) as channel:
        wanted = wire.request_to_pb(request(agent_command))
        return RemoteExecutionStub(channel).Execute(wanted, timeout=PATIENCE_SECONDS)


# --- at gRPC ----------------------------------------------------------------------------------------------------------


def test_who_is_issued_rightly_gets_in(federated: Federated) -> None:
    for chain, key in (
        _leaf()(federated, str(federated.user)),
        _of_partner(federated, f"spiffe://{PARTNER}/user/guest"),
    ):
        assert _call(federated, chain, key).exit_code == 0


def test_a_federated_domain_gets_no_further_than_policy_lets_it(federated: Federated) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        _call(federated, *_of_partner(federated, f"spiffe://{PARTNER}/user/other"))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


@EACH
def test_grpc_refuses_it(federated: Federated, make: Make) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        _call(federated, *make(federated, str(federated.user)))
    # Refused by the handshake, or by what looks closer behind it.
    assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED)


# --- in an order ------------------------------------------------------------------------------------------------------


def _order(stack: Federated, redis: redis_py.Redis, signer: Any, marker: Path) -> tuple[str, bytes]:
    """A message for the agent's queue with an order that leaves a file behind."""
    exec_id = new_id()
    wanted = request("/usr/bin/touch", str(marker), id=exec_id, requested_by=str(stack.user))
    now = int(time.time())
    said = redis.get(keys.info("agent-1"))
    assert isinstance(said, bytes)
    order = WorkOrder(
        iss=str(service_id(TRUST_DOMAIN, "orchestrator")), aud=str(agent_id(TRUST_DOMAIN, "agent-1")),
        sub=str(stack.user), iat=now, exp=now + 600, jti=exec_id, policy="x@1", request=wanted,
        journal=json.loads(said)["boot"], host_access=True,
        grant=Grant(executables=(GrantedExecutable(path="/usr/bin/touch"),), interpreters=True),
    )  # fmt: skip
    return exec_id, MessageFactory().message("agent-1", exec_id, sign(signer, order), expires_seconds=600, shown="x")


def _log(stack: Federated, part: str) -> str:
    return (stack.data / "logs" / f"{part}.log").read_text()


def _logged(stack: Federated, part: str, event: str, exec_id: str) -> bool:
    return any(event in line and exec_id in line for line in _log(stack, part).splitlines())


def test_an_order_that_is_issued_rightly_runs(federated: Federated, redis: redis_py.Redis, tmp_path: Path) -> None:
    orchestrator = str(service_id(TRUST_DOMAIN, "orchestrator"))
    _, message = _order(federated, redis, _signer(*_leaf()(federated, orchestrator)), tmp_path / "marker")
    redis.lpush(keys.queue("agent-1"), message)
    wait_until((tmp_path / "marker").exists, "the order runs")


@EACH
def test_an_agent_refuses_an_order_of_it(
    federated: Federated, redis: redis_py.Redis, tmp_path: Path, make: Make
) -> None:
    signer = _signer(*make(federated, str(service_id(TRUST_DOMAIN, "orchestrator"))))
    exec_id, message = _order(federated, redis, signer, tmp_path / "marker")
    redis.lpush(keys.queue("agent-1"), message)
    wait_until(lambda: _logged(federated, "agent-1", "order.refused", exec_id), "the order is refused")
    assert not (tmp_path / "marker").exists()


# --- in a receipt -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(federated: Federated) -> Iterator[str]:
    """An execution that runs on."""
    with Client(federated.profile()) as client:
        wanted = client.submit(request("/usr/bin/sleep", "300", timeout=600))
        wait_until(lambda: client.status(wanted.id).state is ExecState.STARTED, "it runs")
        yield wanted.id
        assert client.status(wanted.id).state is ExecState.STARTED
        client.cancel(wanted.id)


def _receipt(redis: redis_py.Redis, signer: Any, exec_id: str) -> bytes:
    empty = hashlib.sha256().hexdigest()
    digest = OutputDigest(total_bytes=0, sha256=empty, truncated=False, excerpt_sha256=empty)
    order = redis.hget(keys.execution(exec_id), "order_sha256")
    receipt = Receipt(
        iss=str(agent_id(TRUST_DOMAIN, "agent-1")), iat=int(time.time()), jti=exec_id, order_sha256=order.decode(),
        state=ExecState.SUCCEEDED, exit_code=0, signal=0, error="", executable="/usr/bin/sleep", started_ms=1,
        ended_ms=2, duration_us=1000, chunks=0, stdout=digest, stderr=digest,
    )  # fmt: skip
    nothing = base64.b64encode(b"").decode()
    result = {"receipt": sign(signer, receipt), "stdout": nothing, "stderr": nothing}
    return json.dumps({"status": "SUCCESS", "result": result}).encode()


@EACH
def test_the_orchestrator_refuses_a_receipt_of_it(
    federated: Federated, redis: redis_py.Redis, running: str, make: Make
) -> None:
    before = _log(federated, "orchestrator").count("receipt.refused")
    signer = _signer(*make(federated, str(agent_id(TRUST_DOMAIN, "agent-1"))))
    publish_report(redis, "agent-1", running, _receipt(redis, signer, running))
    wait_until(lambda: _log(federated, "orchestrator").count("receipt.refused") > before, "the receipt is refused")


def test_a_receipt_that_is_issued_rightly_is_believed(federated: Federated, redis: redis_py.Redis) -> None:
    """So that the refusals above are for the certificate."""
    with Client(federated.profile()) as client:
        wanted = client.submit(request("/usr/bin/sleep", "300", timeout=600))
        wait_until(lambda: client.status(wanted.id).state is ExecState.STARTED, "it runs")
        signer = _signer(*_leaf()(federated, str(agent_id(TRUST_DOMAIN, "agent-1"))))
        publish_report(redis, "agent-1", wanted.id, _receipt(redis, signer, wanted.id))
        wait_until(lambda: client.status(wanted.id).state is ExecState.SUCCEEDED, "it is believed")


# --- bundles ----------------------------------------------------------------------------------------------------------


def test_an_agent_of_a_federated_domain_is_no_agent_of_ours(federated: Federated, redis: redis_py.Redis) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        _call(federated, *_of_partner(federated, f"spiffe://{PARTNER}/agent/agent-1"))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_an_ended_certificate_of_a_kept_receipt_counts_only_for_what_was_asked_for_before(
    federated: Federated, redis: redis_py.Redis, running: str
) -> None:
    """Whoever stole the key of a certificate that has ended can date a receipt back, but not to before the request."""
    chain, key = _leaf(begin=NOW - 2 * DAY, end=NOW - DAY)(federated, str(agent_id(TRUST_DOMAIN, "agent-1")))
    raw = json.loads(_receipt(redis, _signer(chain, key), running))
    empty = hashlib.sha256().hexdigest()
    digest = OutputDigest(total_bytes=0, sha256=empty, truncated=False, excerpt_sha256=empty)
    receipt = Receipt(
        iss=str(agent_id(TRUST_DOMAIN, "agent-1")), iat=int((NOW - 1.5 * DAY).timestamp()), jti=running,
        order_sha256=redis.hget(keys.execution(running), "order_sha256").decode(), state=ExecState.SUCCEEDED,
        exit_code=0, signal=0, error="", executable="", started_ms=1, ended_ms=2, duration_us=1000, chunks=0,
        stdout=digest, stderr=digest,
    )  # fmt: skip
    raw["result"]["receipt"] = sign(_signer(chain, key), receipt)
    publish_report(redis, "agent-1", running, json.dumps(raw))
    wait_until(lambda: "is older than the execution" in _log(federated, "orchestrator"), "the receipt is refused")
