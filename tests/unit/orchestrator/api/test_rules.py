"""The rules of the guard name every RPC, and agents may call one of them."""

from __future__ import annotations

from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma_orchestrator.api.rules import RULES, SERVICE, Callers


def test_every_rpc_has_a_rule() -> None:
    service = pb.DESCRIPTOR.services_by_name["RemoteExecution"]
    assert set(RULES) == {method.name for method in service.methods}
    assert f"/{service.full_name}/" == SERVICE


def test_agents_may_renew_their_certificate_and_nothing_else() -> None:
    assert [name for name, callers in RULES.items() if callers is Callers.AGENTS] == ["RenewAgent"]
