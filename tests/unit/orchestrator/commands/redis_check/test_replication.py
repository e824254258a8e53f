"""What is wrong with the replication of a server, by its settings. Live servers are checked in tests/faults."""

from __future__ import annotations

import pytest

from tachikoma_orchestrator.commands.redis_check.replication import replication_findings

#: A primary with two replicas.
INFO: dict[str, object] = {"role": "master", "slave0": {"state": "online"}, "slave1": {"state": "online"}}
REPLICA: dict[str, object] = {"role": "slave", "master_link_status": "up"}
CONFIG = {
    "tls-port": "6379",
    "min-replicas-to-write": "1",
    "min-replicas-max-lag": "1",
    "repl-timeout": "10",
    "masteruser": "replica",
    "tls-replication": "yes",
}


def found(info: dict[str, object] = INFO, **config: str) -> list[str]:
    settings = {**CONFIG, **{name.replace("_", "-"): value for name, value in config.items()}}
    findings = list(replication_findings(info, settings))
    assert all(item.what and item.remedy for item in findings)
    return [item.where for item in findings]


@pytest.mark.parametrize("info", [INFO, REPLICA])
def test_all_is_right(info: dict[str, object]) -> None:
    assert found(info) == []
    assert found(info, tls_port="0", tls_replication="no") == []


def test_a_server_that_stands_alone_needs_none_of_it() -> None:
    alone = dict.fromkeys(("min_replicas_to_write", "min_replicas_max_lag", "masteruser", "tls_replication"), "")
    assert found({"role": "master", "connected_slaves": 0}, **alone) == []
    # A backup is no replica.
    assert found({"role": "master", "connected_slaves": 1, "slave0": {"state": "send_bulk"}}, **alone) == []


@pytest.mark.parametrize("info", [INFO, REPLICA])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min-replicas-to-write", "0"), ("min-replicas-max-lag", "10"), ("min-replicas-max-lag", "0"),
        ("repl-timeout", "60"), ("masteruser", ""), ("tls-replication", "no"),
    ],
)  # fmt: skip
def test_each_setting_is_compared_on_primary_and_replica(info: dict[str, object], name: str, value: str) -> None:
    assert found(info, **{name: value}) == [name]


def test_replicas_that_do_not_follow_are_found_on_both_sides() -> None:
    assert found({"role": "slave", "master_link_status": "down"}) == ["replication"]
    assert found({"role": "master", "slave0": {"state": "online"}}, min_replicas_to_write="2") == [
        "min-replicas-to-write"
    ]
