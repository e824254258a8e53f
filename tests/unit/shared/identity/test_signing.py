"""Signed messages: orders, cancels and receipts."""

from __future__ import annotations

import base64
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.identity.bundles import TrustBundle
from tachikoma.identity.signed_messages import CancelOrder, OutputDigest, ParkedRequest, Receipt, WorkOrder
from tachikoma.identity.signing import CLOCK_SKEW_SECONDS, InvalidSignature, UnreadableMessage, sign, verify
from tachikoma.identity.spiffe import SpiffeId
from tachikoma.identity.svid import Svid
from tachikoma.vocabulary.order_trace import OrderTrace
from tachikoma.vocabulary.request_rules import MAX_STDIN_BYTES
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.states import ExecState

DOMAIN = "tachikoma.local"
GRANT = {"executables": [{"path": "/bin/true"}]}
ORCHESTRATOR = f"spiffe://{DOMAIN}/service/orchestrator"
AGENT = f"spiffe://{DOMAIN}/agent/web-1"
ISSUER = SpiffeId.parse(ORCHESTRATOR)
NOW = int(time.time())
THEN = datetime(2026, 1, 31, 12, tzinfo=UTC)


def order(**values: Any) -> WorkOrder:
    request = ExecRequest(id="job-7", agent_id="web-1", command=["/bin/true"], timeout="5m", request_time=THEN)
    defaults = {"iss": ORCHESTRATOR, "iat": NOW, "aud": AGENT, "sub": f"spiffe://{DOMAIN}/user/alice", "exp": NOW + 600}
    defaults |= {"jti": "job-7", "policy": "web@0123456789ab", "grant": GRANT, "request": request}
    return WorkOrder(**{**defaults, **values})


def cancel(**values: Any) -> CancelOrder:
    defaults = {"iss": ORCHESTRATOR, "iat": NOW, "aud": AGENT, "sub": f"spiffe://{DOMAIN}/user/alice", "jti": "job-7"}
    return CancelOrder(**{**defaults, **values})


def receipt(**values: Any) -> Receipt:
    digest = OutputDigest(total_bytes=3, sha256="ab" * 32, truncated=False, excerpt_sha256="ab" * 32)
    defaults = {"iss": ORCHESTRATOR, "iat": NOW, "jti": "job-7", "order_sha256": "cd", "state": ExecState.SUCCEEDED}
    defaults |= {"exit_code": 0, "signal": 0, "error": "", "executable": "/bin/true", "started_ms": 1, "ended_ms": 2}
    return Receipt(**{**defaults, "duration_us": 1000, "chunks": 1, "stdout": digest, "stderr": digest, **values})


def parked(**values: Any) -> ParkedRequest:
    defaults = {"iss": ORCHESTRATOR, "iat": NOW, "jti": "job-7", "request": order().request}
    return ParkedRequest(**{**defaults, **values})


MESSAGES = [order(), cancel(), receipt(), parked()]
KINDS = pytest.mark.parametrize("claims", MESSAGES, ids=lambda claims: type(claims).__name__)


@pytest.fixture(scope="session")
def svid(authority: Any) -> Svid:
    """The orchestrator's identity."""
    return authority.svid(ORCHESTRATOR)


@pytest.fixture(scope="session")
def bundle(authority: Any) -> TrustBundle:
    return TrustBundle(DOMAIN, [authority.certificate])


@pytest.fixture(scope="session")
def tokens(svid: Svid) -> list[str]:
    """Each of the messages, signed. Once: no two signatures of the same are alike."""
    return [sign(svid, claims) for claims in MESSAGES]


def encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def forge(svid: Svid, header: Any, payload: bytes) -> str:
    """A token with any header, correctly signed with the identity's key."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = f"{encode(head)}.{encode(payload)}"
    key = load_pem_private_key(svid.key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    r, s = decode_dss_signature(key.sign(content.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{content}.{encode(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def header_of(token: str) -> dict[str, Any]:
    return dict(json.loads(decode(token.split(".")[0])))


def refused(token: str, bundle: TrustBundle, match: str | None = None, kind: type = WorkOrder) -> None:
    with pytest.raises(InvalidSignature, match=match):
        verify(token, kind, bundle, ISSUER)


# --- what is believed -------------------------------------------------------------------------------------------------


@KINDS
def test_a_signed_message_says_what_was_signed(claims: Any, svid: Svid, bundle: TrustBundle) -> None:
    token = sign(svid, claims)
    assert token.isascii()
    assert verify(token, type(claims), bundle, ISSUER) == claims


@KINDS
def test_type_and_algorithm_stand_in_the_header(claims: Any, svid: Svid) -> None:
    header = header_of(sign(svid, claims))
    assert (header["typ"], header["alg"]) == (claims.type, "ES256")
    assert set(header) == {"typ", "alg", "x5c"}


def test_the_chain_travels_along(new_authority: Any, authority: Any, bundle: TrustBundle) -> None:
    through = authority.svid(ORCHESTRATOR, via=new_authority(parent=authority))
    token = sign(through, order())
    assert len(header_of(token)["x5c"]) == 2
    assert verify(token, WorkOrder, bundle, ISSUER) == order()


def test_an_order_with_the_largest_input_can_be_signed_and_read(svid: Svid, bundle: TrustBundle) -> None:
    stdin = bytes(range(256)) * (MAX_STDIN_BYTES // 256)
    request = ExecRequest(id="job-7", agent_id="web-1", command=["/bin/cat"], stdin=stdin)
    read = verify(sign(svid, order(request=request)), WorkOrder, bundle, ISSUER)
    assert read.request.stdin == stdin


def test_the_largest_request_of_all_can_be_signed_and_read(svid: Svid, bundle: TrustBundle) -> None:
    # Control characters are six characters each in JSON.
    request = ExecRequest(
        id="job-7",
        agent_id="web-1",
        command=["/bin/cat", "\x01" * (128 * 1024 - 11)],
        environment={"A": "\x01" * (128 * 1024 - 3)},
        stdin=bytes(MAX_STDIN_BYTES),
    )
    assert verify(sign(svid, order(request=request)), WorkOrder, bundle, ISSUER).request == request


def test_a_clock_a_little_ahead_is_forgiven(svid: Svid, bundle: TrustBundle) -> None:
    ahead = order(iat=int(time.time()) + CLOCK_SKEW_SECONDS - 30)
    assert verify(sign(svid, ahead), WorkOrder, bundle, ISSUER) == ahead


@pytest.mark.parametrize("names", ["jku", "jwk", "kid"])
def test_keys_offered_in_the_header_are_never_looked_at(
    names: str, svid: Svid, stranger: Any, bundle: TrustBundle
) -> None:
    theirs = stranger.svid(ORCHESTRATOR)
    numbers = theirs.chain[0].public_key().public_numbers()
    jwk = {
        "kty": "EC",
        "crv": "P-256",
        "x": encode(numbers.x.to_bytes(32, "big")),
        "y": encode(numbers.y.to_bytes(32, "big")),
    }
    offered = {"jku": "https://evil.example/keys", "jwk": jwk, "kid": "evil"}[names]
    token = forge(theirs, {**header_of(sign(svid, order())), names: offered}, order().model_dump_json().encode())
    refused(token, bundle)


# --- types and algorithms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [WorkOrder, CancelOrder, Receipt])
@KINDS
def test_a_message_is_not_taken_for_one_of_another_type(
    claims: Any, kind: type, svid: Svid, bundle: TrustBundle
) -> None:
    if isinstance(claims, kind):
        assert verify(sign(svid, claims), kind, bundle, ISSUER) == claims
    else:
        refused(sign(svid, claims), bundle, "is a .*, not a", kind)


@pytest.mark.parametrize("typ", ["JWT", "", "tachikoma-order", "TACHIKOMA-ORDER+JWS", "tachikoma-cancel+jws", None, 1])
def test_a_wrong_typ_is_refused_though_the_claims_are_right(typ: Any, svid: Svid, bundle: TrustBundle) -> None:
    header = {**header_of(sign(svid, order())), "typ": typ}
    refused(forge(svid, header, order().model_dump_json().encode()), bundle)


def test_a_missing_typ_is_refused(svid: Svid, bundle: TrustBundle) -> None:
    header = header_of(sign(svid, order()))
    del header["typ"]
    refused(forge(svid, header, order().model_dump_json().encode()), bundle, "not a")


def test_claims_of_another_type_under_the_right_typ_are_refused(svid: Svid, bundle: TrustBundle) -> None:
    header = header_of(sign(svid, order()))
    refused(forge(svid, header, cancel().model_dump_json().encode()), bundle, "wrong claims")


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", ""])
def test_an_unsigned_message_is_refused(algorithm: str, svid: Svid, bundle: TrustBundle) -> None:
    header = {**header_of(sign(svid, order())), "alg": algorithm}
    content = f"{encode(json.dumps(header).encode())}.{encode(order().model_dump_json().encode())}"
    refused(f"{content}.", bundle)
    refused(f"{content}.{encode(bytes(64))}", bundle)


@pytest.mark.parametrize(
    "form", [(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)]
)
def test_the_public_key_is_not_taken_for_a_shared_secret(form: Any, svid: Svid, bundle: TrustBundle) -> None:
    header = {**header_of(sign(svid, order())), "alg": "HS256"}
    content = f"{encode(json.dumps(header).encode())}.{encode(order().model_dump_json().encode())}"
    mac = hmac.HMAC(svid.chain[0].public_key().public_bytes(*form), hashes.SHA256())
    mac.update(content.encode())
    refused(f"{content}.{encode(mac.finalize())}", bundle)


@pytest.mark.parametrize("algorithm", ["ES384", "ES512", "RS256", "PS256", "EdDSA", "es256", None, 256, ["ES256"]])
def test_no_other_algorithm_will_do(algorithm: Any, svid: Svid, bundle: TrustBundle) -> None:
    header = {**header_of(sign(svid, order())), "alg": algorithm}
    refused(forge(svid, header, order().model_dump_json().encode()), bundle)


@pytest.mark.parametrize(
    "more",
    [{"crit": ["b64"], "b64": False}, {"b64": False}, {"crit": ["exp"]}, {"crit": []}, {"crit": "x"}, {"crit": 1}],
)
def test_a_header_that_asks_for_more_is_refused_or_changes_nothing(
    more: dict[str, Any], svid: Svid, bundle: TrustBundle
) -> None:
    header = {**header_of(sign(svid, order())), **more}
    try:
        claims = verify(forge(svid, header, order().model_dump_json().encode()), WorkOrder, bundle, ISSUER)
    except InvalidSignature:
        return
    assert claims == order()


# --- who signed -------------------------------------------------------------------------------------------------------


def test_another_identity_of_the_same_trust_domain_is_refused(authority: Any, bundle: TrustBundle) -> None:
    other = authority.svid(AGENT)
    refused(sign(other, order()), bundle, "is signed by .*/agent/web-1, not by .*/service/orchestrator")
    refused(sign(other, order(iss=AGENT)), bundle, "not by")


def test_claims_that_name_another_issuer_than_the_signer_are_refused(svid: Svid, bundle: TrustBundle) -> None:
    refused(sign(svid, order(iss=AGENT)), bundle, "another issuer")


def test_a_foreign_authority_is_not_believed(stranger: Any, bundle: TrustBundle) -> None:
    refused(sign(stranger.svid(ORCHESTRATOR), order()), bundle, "not signed by a trusted identity")


def test_a_foreign_key_under_our_certificate_is_not_believed(svid: Svid, stranger: Any, bundle: TrustBundle) -> None:
    token = forge(stranger.svid(ORCHESTRATOR), header_of(sign(svid, order())), order().model_dump_json().encode())
    refused(token, bundle, "not validly signed")


def test_an_expired_identity_is_not_believed(authority: Any, bundle: TrustBundle) -> None:
    end = datetime.now(UTC) - timedelta(minutes=1)
    expired = authority.svid(ORCHESTRATOR, begin=end - timedelta(days=1), end=end)
    refused(sign(expired, order()), bundle, "not signed by a trusted identity.*not now")


def test_an_authority_is_not_an_identity(authority: Any, bundle: TrustBundle) -> None:
    refused(sign(authority.svid(ORCHESTRATOR, ca=True), order()), bundle, "is a CA")


@pytest.mark.parametrize(
    "x5c", [None, [], "", "x", {}, [""], ["x"], [1], [None], ["AAAA"], [["x"]], ["AAAA"] * 9, ["\ud800"], ["ä"]]
)
def test_a_message_without_a_readable_chain_is_refused(x5c: Any, svid: Svid, bundle: TrustBundle) -> None:
    header = {**header_of(sign(svid, order())), "x5c": x5c}
    refused(forge(svid, header, order().model_dump_json().encode()), bundle)


def test_a_message_without_any_chain_is_refused(svid: Svid, bundle: TrustBundle) -> None:
    header = header_of(sign(svid, order()))
    del header["x5c"]
    refused(forge(svid, header, order().model_dump_json().encode()), bundle, "no certificate chain")


def test_a_certificate_of_a_version_nobody_knows_is_refused(svid: Svid, bundle: TrustBundle) -> None:
    der = svid.chain[0].public_bytes(Encoding.DER).replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05", 1)
    header = {**header_of(sign(svid, order())), "x5c": [base64.b64encode(der).decode()]}
    refused(forge(svid, header, order().model_dump_json().encode()), bundle)


def test_a_certificate_with_an_extension_twice_is_refused(authority: Any, svid: Svid, bundle: TrustBundle) -> None:
    first, second = (x509.UnrecognizedExtension(x509.ObjectIdentifier(f"1.2.3.4.{n}"), b"\x05\x00") for n in (5, 6))
    der = authority.leaf(ORCHESTRATOR, extra=[first, second])[0].public_bytes(Encoding.DER)
    der = der.replace(b"\x06\x04\x2a\x03\x04\x06", b"\x06\x04\x2a\x03\x04\x05")
    header = {**header_of(sign(svid, order())), "x5c": [base64.b64encode(der).decode()]}
    refused(forge(svid, header, order().model_dump_json().encode()), bundle)


def test_a_certificate_with_a_kind_of_key_nobody_knows_is_refused(svid: Svid, bundle: TrustBundle) -> None:
    elliptic, unknown = b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01", b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x7f"
    der = svid.chain[0].public_bytes(Encoding.DER).replace(elliptic, unknown)
    header = {**header_of(sign(svid, order())), "x5c": [base64.b64encode(der).decode()]}
    refused(forge(svid, header, order().model_dump_json().encode()), bundle)


def test_a_trusted_certificate_with_an_rsa_key_does_not_sign_orders(
    authority: Any, svid: Svid, bundle: TrustBundle
) -> None:
    leaf, _ = authority.leaf(ORCHESTRATOR, key=rsa.generate_private_key(65537, 2048))
    header = {**header_of(sign(svid, order())), "x5c": [base64.b64encode(leaf.public_bytes(Encoding.DER)).decode()]}
    refused(forge(svid, header, order().model_dump_json().encode()), bundle)


# --- times ------------------------------------------------------------------------------------------------------------


def test_a_message_of_a_time_to_come_is_refused(svid: Svid, bundle: TrustBundle) -> None:
    refused(sign(svid, order(iat=int(time.time()) + CLOCK_SKEW_SECONDS + 60)), bundle, "in the future")
    refused(sign(svid, order(iat=10**30)), bundle, "in the future")


# --- altered messages -------------------------------------------------------------------------------------------------


@given(data=st.data())
def test_no_message_survives_a_changed_byte(data: st.DataObject, tokens: list[str], bundle: TrustBundle) -> None:
    parts = tokens[data.draw(st.integers(0, 2), label="message")].split(".")
    part = data.draw(st.integers(0, 2), label="part")
    raw = bytearray(decode(parts[part]))
    at = data.draw(st.integers(0, len(raw) - 1), label="at")
    raw[at] ^= data.draw(st.integers(1, 255), label="bits")
    parts[part] = encode(bytes(raw))
    for kind in (WorkOrder, CancelOrder, Receipt):
        refused(".".join(parts), bundle, kind=kind)


@given(data=st.data())
def test_no_message_survives_a_changed_character(data: st.DataObject, tokens: list[str], bundle: TrustBundle) -> None:
    token = tokens[1]
    at = data.draw(st.integers(0, len(token) - 1), label="at")
    character = data.draw(st.sampled_from([c for c in "AQgwBz09-_.=+/ \n\0é" if c != token[at]]), label="character")
    refused(token[:at] + character + token[at + 1 :], bundle, kind=CancelOrder)


@given(data=st.data())
def test_no_message_survives_a_cut_or_an_addition(data: st.DataObject, tokens: list[str], bundle: TrustBundle) -> None:
    token = tokens[1]
    at = data.draw(st.integers(0, len(token) - 1), label="at")
    refused(token[:at], bundle, kind=CancelOrder)
    added = data.draw(st.sampled_from(["A", "AAAA", ".", ".A", "=", "\n", " ", "\0"]), label="added")
    refused(token[:at] + added + token[at:], bundle, kind=CancelOrder)
    refused(token + added, bundle, kind=CancelOrder)


def test_the_signature_of_one_message_does_not_fit_another(svid: Svid, bundle: TrustBundle) -> None:
    one, other = sign(svid, order()).split("."), sign(svid, order(jti="job-8")).split(".")
    refused(".".join([other[0], other[1], one[2]]), bundle, "not validly signed")


@given(text=st.text(max_size=60) | st.text("abAB019-_.", max_size=60))
def test_garbage_is_refused_and_nothing_else_happens(text: str, bundle: TrustBundle) -> None:
    refused(text, bundle)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("alg"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["alg", "typ", "x5c", "crit"]), inner),
    max_leaves=6,
)


@given(header=JSON)
def test_any_header_but_ours_is_refused_and_nothing_else_happens(header: Any, svid: Svid, bundle: TrustBundle) -> None:
    refused(forge(svid, header, order().model_dump_json().encode()), bundle)


@pytest.mark.parametrize(
    "header",
    [b"", b"{", b"\xff", b"null", b"1", b'"alg"', b'["alg"]', b'{"alg": "ES256", "alg": "none"}', b"[" * 12_000],
    ids=lambda header: repr(header[:40]),
)
def test_a_header_that_is_no_object_is_refused(header: bytes, svid: Svid, bundle: TrustBundle) -> None:
    refused(forge(svid, header, order().model_dump_json().encode()), bundle)


def test_a_huge_number_in_the_header_is_refused(svid: Svid, bundle: TrustBundle) -> None:
    refused(forge(svid, b'{"alg": ' + b"9" * 12_000 + b"}", b"{}"), bundle)


@given(claims=JSON)
def test_any_claims_but_ours_are_refused_and_nothing_else_happens(claims: Any, svid: Svid, bundle: TrustBundle) -> None:
    refused(
        forge(svid, header_of(sign(svid, order())), json.dumps(claims).encode()), bundle, "wrong claims|of its format"
    )


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 100_000], ids=lambda p: repr(p[:8]))
def test_claims_that_are_no_json_are_refused(payload: bytes, svid: Svid, bundle: TrustBundle) -> None:
    refused(forge(svid, header_of(sign(svid, order())), payload), bundle, "wrong claims")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"jti": "a.b"}, "jti"),
        ({"grant": {"executables": []}}, "executables"),
        ({"request": {"agentId": "a", "command": []}}, "request"),
        ({"request": None}, "request"),
        ({"exp": "soon"}, "exp"),
        ({"iat": None}, "iat"),
    ],
)
def test_claims_out_of_bounds_are_refused_though_well_signed(
    change: dict[str, Any], told: str, svid: Svid, bundle: TrustBundle
) -> None:
    claims = {**json.loads(order().model_dump_json()), **change}
    refused(forge(svid, header_of(sign(svid, order())), json.dumps(claims).encode()), bundle, f"wrong claims: .*{told}")


# --- versions of the formats ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"v": 2}, "is written in version 2 of its format, and this program reads version 1"),
        ({"v": 0, "grant": "of another shape"}, "version 0 of its format, and this program reads version 1"),
        ({"v": "two"}, "version two of its format"),
        ({"v": None}, "version None of its format"),
        ({"v": 2, "request": None, "jti": 7}, "version 2 of its format"),
        ({"crit": ["epoch"], "epoch": 3}, "requires fields that this program does not know in version 1"),
        ({"crit": ["jti", "x" * 5000]}, "requires fields"),
        ({"crit": "jti"}, "wrong claims: .*crit"),
        ({"crit": [5]}, "wrong claims: .*crit"),
    ],
)
def test_a_format_that_cannot_be_read_is_named_with_both_versions(
    change: dict[str, Any], reason: str, svid: Svid, bundle: TrustBundle
) -> None:
    claims = {**json.loads(order().model_dump_json()), **change}
    refused(forge(svid, header_of(sign(svid, order())), json.dumps(claims).encode()), bundle, reason)


def test_a_message_of_another_version_is_read_only_after_its_signature(svid: Svid, bundle: TrustBundle) -> None:
    claims = {**json.loads(order().model_dump_json()), "v": 2}
    head, _, signature = forge(svid, header_of(sign(svid, order())), b"{}").split(".")
    with pytest.raises(InvalidSignature) as refusal:
        verify(f"{head}.{encode(json.dumps(claims).encode())}.{signature}", WorkOrder, bundle, ISSUER)
    assert not isinstance(refusal.value, UnreadableMessage)


def test_fields_of_a_newer_order_are_ignored_unless_they_are_critical(svid: Svid, bundle: TrustBundle) -> None:
    for change in ({"later": "x"}, {"wave": {"id": 1}, "crit": []}, {"reply": None, "crit": ["grant", "request"]}):
        claims = {**json.loads(order().model_dump_json()), **change}
        token = forge(svid, header_of(sign(svid, order())), json.dumps(claims).encode())
        assert verify(token, WorkOrder, bundle, ISSUER).request == order().request
    # The first orders had no version.
    claims = json.loads(order().model_dump_json())
    del claims["v"], claims["crit"]
    token = forge(svid, header_of(sign(svid, order())), json.dumps(claims).encode())
    assert verify(token, WorkOrder, bundle, ISSUER) == order()


def test_an_order_outside_of_any_trace_is_as_it_was_before_there_were_traces() -> None:
    assert "trace" not in json.loads(order().model_dump_json())
    trace = OrderTrace(parent=f"00-{'a' * 32}-{'b' * 16}-01", signed_ms=5)
    assert json.loads(order(trace=trace).model_dump_json())["trace"] == {"parent": trace.parent, "signed_ms": 5}


# --- messages that are kept -------------------------------------------------------------------------------------------


def test_a_kept_message_does_not_outlive_the_root_that_vouched_for_its_signer(
    authority: Any, new_authority: Any, svid: Svid
) -> None:
    """A root is removed because nothing of it is to be believed any more, whenever it says that it was signed."""
    new = new_authority().certificate
    token = sign(svid, parked())
    both = TrustBundle(DOMAIN, [authority.certificate, new])
    assert verify(token, ParkedRequest, both, ISSUER, kept=True) == parked()
    with pytest.raises(InvalidSignature, match="not signed by a trusted identity"):
        verify(token, ParkedRequest, TrustBundle(DOMAIN, [new]), ISSUER, kept=True)


def test_a_kept_message_outlives_its_signers_certificate(authority: Any, bundle: TrustBundle) -> None:
    begin, end = datetime.now(UTC) - timedelta(days=2), datetime.now(UTC) - timedelta(days=1)
    svid = authority.svid(ORCHESTRATOR, begin=begin, end=end)
    then = int(begin.timestamp()) + 3600
    token = sign(svid, parked(iat=then))
    assert verify(token, ParkedRequest, bundle, ISSUER, kept=True) == parked(iat=then)
    refused(token, bundle, "not now", kind=ParkedRequest)
    # But it must have been signed while that was valid.
    for at in (int(begin.timestamp()) - 60, int(end.timestamp()) + 60, NOW):
        with pytest.raises(InvalidSignature, match="not now"):
            verify(sign(svid, parked(iat=at)), ParkedRequest, bundle, ISSUER, kept=True)


@given(claims=JSON)
def test_a_kept_message_with_any_claims_but_ours_is_refused(claims: Any, svid: Svid, bundle: TrustBundle) -> None:
    token = forge(svid, header_of(sign(svid, parked())), json.dumps(claims).encode())
    with pytest.raises(InvalidSignature):
        verify(token, ParkedRequest, bundle, ISSUER, kept=True)


def test_what_waits_for_an_approval_is_no_order_and_an_order_is_no_request(svid: Svid, bundle: TrustBundle) -> None:
    refused(sign(svid, parked()), bundle, "is a 'tachikoma-parked")
    refused(sign(svid, order()), bundle, "is a 'tachikoma-order", kind=ParkedRequest)


def test_claims_cannot_be_changed() -> None:
    for claims in MESSAGES:
        with pytest.raises(ValueError, match="frozen"):
            claims.jti = "other"
