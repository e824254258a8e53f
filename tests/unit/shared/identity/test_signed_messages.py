"""Bounds of the claims of signed messages."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tachikoma.identity import signed_messages
from tachikoma.identity.signed_messages import OutputDigest, Receipt, SignedRequest
from tachikoma.identity.signing import Claims
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.results import KillReceipt
from tachikoma.vocabulary.states import ExecState

DIGEST = OutputDigest(total_bytes=0, sha256="ab" * 32, truncated=False, excerpt_sha256="ab" * 32)
KILLED = KillReceipt(empty=True, whole=True)


def receipt(**values: Any) -> Receipt:
    defaults = {"iss": "a", "iat": 1, "jti": "e", "order_sha256": "", "state": ExecState.SUCCEEDED, "exit_code": 0}
    defaults |= {"signal": 0, "error": "", "executable": "", "started_ms": 1, "ended_ms": 2, "duration_us": 3}
    return Receipt(**{**defaults, "chunks": 0, "stdout": DIGEST, "stderr": DIGEST, **values})


def test_every_message_has_a_type_of_its_own() -> None:
    kinds = [getattr(signed_messages, name) for name in signed_messages.__all__]
    types = [kind.model_fields["type"].default for kind in kinds if issubclass(kind, Claims)]
    assert len(set(types)) == len(types) == len(kinds) - 1
    assert all(name.startswith("tachikoma-") and name.endswith("+jws") for name in types)


@pytest.mark.parametrize("state", [ExecState.CANCELLED, ExecState.TIMED_OUT])
def test_a_killed_command_is_gone(state: ExecState) -> None:
    assert receipt(state=state, kill=KILLED).kill == KILLED
    assert receipt(state=state, started_ms=0).kill is None
    for kill in (None, KillReceipt(empty=False, whole=True)):
        with pytest.raises(ValidationError, match="but not that all processes of the command are gone"):
            receipt(state=state, kill=kill)


def test_a_signed_request_names_its_own_execution() -> None:
    request = ExecRequest(id="one", agent_id="a", command=("x",))
    assert SignedRequest(iss="i", iat=1, aud="o", exp=2, jti="one", request=request).request is request
    with pytest.raises(ValidationError, match="names another execution than its request"):
        SignedRequest(iss="i", iat=1, aud="o", exp=2, jti="two", request=request)


@pytest.mark.parametrize(
    "values",
    [
        *({"exit_code": 256}, {"exit_code": -2}, {"signal": 65}, {"signal": -1}, {"error": "x" * 8193}, {"chunks": -1}),
        *({"started_ms": -1}, {"ended_ms": 10**15}, {"duration_us": 2**63}, {"jti": "a.b"}, {"more": 1}),
    ],
)
def test_a_receipt_of_a_hostile_agent_has_bounds(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        receipt(**values)
