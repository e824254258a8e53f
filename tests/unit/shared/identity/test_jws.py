"""Our compact JWS and the one of a general library agree."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws as general
from joserfc.jwk import ECKey

from tachikoma.identity import jws
from tachikoma.identity.svid import Svid

TYP = "tachikoma-test+jws"


@pytest.fixture(scope="session")
def svid(authority: Any) -> Svid:
    svid = authority.svid("spiffe://tachikoma.local/service/orchestrator")
    assert isinstance(svid, Svid)
    return svid


def registry() -> general.JWSRegistry:
    made = general.JWSRegistry(algorithms=["ES256"])
    made.max_header_length = 16 * 1024
    return made


def signed(svid: Svid, payload: bytes) -> str:
    return jws.sign_payload(payload, TYP, svid.chain, svid.signing_key)


@given(st.binary(max_size=300))
def test_the_general_library_verifies_what_was_signed_here(svid: Svid, payload: bytes) -> None:
    key = ECKey.import_key(svid.key_pem)
    found = general.deserialize_compact(signed(svid, payload), key, registry=registry())
    assert found.payload == payload
    assert found.headers() | {"x5c": []} == {"alg": "ES256", "typ": TYP, "x5c": []}


@given(st.binary(max_size=300))
def test_what_the_general_library_signed_is_verified_here(svid: Svid, payload: bytes) -> None:
    x5c = json.loads(base64.urlsafe_b64decode(signed(svid, b"").split(".")[0] + "=="))["x5c"]
    header = {"typ": TYP, "x5c": x5c, "alg": "ES256"}
    token = general.serialize_compact(header, payload, ECKey.import_key(svid.key_pem), registry=registry())
    message = jws.parse(token, TYP)
    message.check_signature()
    assert message.payload == payload
    assert message.header.chain == svid.chain


@given(st.data())
def test_no_signature_fits_after_a_change(svid: Svid, data: st.DataObject) -> None:
    token = signed(svid, b"payload")
    place = data.draw(st.integers(0, len(token) - 1))
    changed = token[:place] + data.draw(st.sampled_from("Ag-_.=+ ")) + token[place + 1 :]
    if changed == token:
        return
    with pytest.raises(Exception):  # noqa: B017, PT011 (which one depends on the place)
        jws.parse(changed, TYP).check_signature()


@pytest.mark.parametrize("length", [0, 1, 63, 65, 128])
def test_a_signature_of_another_length_is_refused(svid: Svid, length: int) -> None:
    head = signed(svid, b"x").rpartition(".")[0]
    signature = base64.urlsafe_b64encode(b"\1" * length).rstrip(b"=").decode()
    with pytest.raises(ValueError, match="another length"):
        jws.parse(f"{head}.{signature}", TYP).check_signature()


@pytest.mark.parametrize("extra", [{"crit": ["exp"]}, {"crit": []}, {"b64": False}, {"b64": True}])
def test_a_header_that_requires_an_extension_is_refused(svid: Svid, extra: dict[str, Any]) -> None:
    header = {**json.loads(base64.urlsafe_b64decode(signed(svid, b"").split(".")[0] + "==")), **extra}
    segment = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    for _ in range(2):
        # Nothing is remembered of a refused header.
        with pytest.raises(ValueError, match="extension"):
            jws.parse(f"{segment}.eA.eA", TYP)


def test_a_header_is_parsed_once_and_only_for_its_own_kind(svid: Svid) -> None:
    one, other = (jws.parse(signed(svid, payload), TYP) for payload in (b"one", b"other"))
    assert one.header is other.header
    with pytest.raises(jws.WrongHeader, match="not a 'another'"):
        jws.parse(signed(svid, b"one"), "another")
