"""What operators ask the orchestrator, and find in its files."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from support import Cli, free_addresses, make_cli, prepare, read_metrics, request, wait_until

from patience import PATIENCE_SECONDS
from tachikoma import Client, FailedPrecondition, PermissionDenied
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.identity.spiffe import user_id

#: A stack, and the addresses of the metrics of its orchestrator and worker.
Measured: TypeAlias = tuple[Stack, str, str]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[Measured]:
    """A stack with metrics, and their addresses: the orchestrator's and the worker's."""
    orchestrator, worker = free_addresses(2)
    environment = {
        "TACHIKOMA_METRICS": orchestrator, "TACHIKOMA_WORKER_METRICS": worker, "TACHIKOMA_METRICS_CLASS": "role",
    }  # fmt: skip
    data = prepare(tmp_path_factory.mktemp("operators"))
    with Stack(data, redis_server=redis_server, environment=environment) as stack:
        yield stack, orchestrator, worker


@pytest.fixture
def cli(measured: Measured) -> Cli:
    return make_cli(measured[0])


def test_policy_status_says_what_is_in_force_and_why_an_edit_is_not(measured: Measured, cli: Cli) -> None:
    stack, address, _ = measured
    good = stack.policy.read_text()
    done = cli.run("policy", "status")
    assert (done.returncode, done.stderr) == (0, b"")
    in_force = done.stdout.decode().splitlines()[0]
    assert in_force.startswith("active  ")
    assert in_force.endswith(", 1 policy")
    assert str(stack.policy) in done.stdout.decode()
    before = read_metrics(address)
    assert (before["tachikoma_policies"], before["tachikoma_policy_error"]) == (1, 0)

    stack.policy.write_text(good.replace("maxTimeout", "maxTimout"))
    wait_until(lambda: read_metrics(address)["tachikoma_policy_error"] == 1, "the metric tells of the broken edit")
    done = cli.run("policy", "status")
    assert done.returncode == 1
    assert done.stdout.decode().splitlines()[0] == in_force
    assert (
        f"{stack.policy}:13:5: policies[0].maxTimout: unknown field; did you mean maxTimeout?" in done.stderr.decode()
    )
    status = json.loads(cli.run("policy", "status", "-o", "json").stdout)
    assert status["error"].startswith(f"{stack.policy}:13:5: ")
    with Client(stack.profile()) as client:
        assert client.execute(request("true")).exit_code == 0
        kept = [event for event in client.audit(limit=100) if event.event == "policy_kept"]
        assert [event.evidence_sha256 for event in kept] == [status["digest"]]

    stack.policy.write_text(good + "# right again\n")
    wait_until(lambda: cli.run("policy", "status").returncode == 0, "the right one is in force")
    assert cli.run("policy", "status").stdout.decode().splitlines()[0] != in_force
    after = read_metrics(address)
    assert after["tachikoma_policy_error"] == 0
    assert after["tachikoma_policy_since_seconds"] > before["tachikoma_policy_since_seconds"]


MONITORING = Path(__file__).parents[2] / "packaging" / "monitoring"


@contextmanager
def _prometheus(folder: Path, targets: list[str]) -> Iterator[str]:
    """Run Prometheus on some targets with the alert rules; yield its address."""
    (address,) = free_addresses(1)
    jobs = [{"job_name": "tachikoma", "static_configs": [{"targets": targets}]}]
    times = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    # JSON is YAML.
    content = {"global": times, "rule_files": [str(MONITORING / "alerts.yaml")], "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(json.dumps(content))
    process = subprocess.Popen(
        [
            "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={address}",
        ],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield address
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def _ask(address: str, path: str, **query: str) -> Any:
    """Return the data of an answer of Prometheus; None if it does not serve yet."""
    try:
        with urllib.request.urlopen(
            f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=PATIENCE_SECONDS
        ) as answer:
            return json.load(answer)["data"]
    except OSError:
        return None


@pytest.mark.long
def test_prometheus_reads_what_dashboard_and_alerts_ask_for(
    measured: Measured, cli: Cli, tmp_path: Path, need: Callable[[bool, str], None]
) -> None:
    need(shutil.which("prometheus") is not None, "Prometheus")
    _, address, worker = measured
    assert cli.run("exec", "agent-1", "true").returncode == 0
    assert read_metrics(worker)['tachikoma_stage_seconds_count{stage="spawn"}'] >= 1
    assert cli.run("exec", "agent-1", "reboot").returncode == 125
    ended = 'tachikoma_executions_total{agent_class="",state="succeeded"}'
    assert read_metrics(address)[ended] >= 1
    assert read_metrics(address)['tachikoma_admissions_total{decision="denied"}'] >= 1
    wait_until(lambda: read_metrics(address).get('tachikoma_agents{state="online"}') == 1, "the agents are measured")
    with _prometheus(tmp_path, [address, worker]) as prometheus:
        asked = [
            target["expr"].replace("[5m]", "[1m]").replace("[1h]", "[1m]")
            for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"]
            for target in panel["targets"]
        ]
        waiting = dict.fromkeys(asked)

        def answered() -> bool:
            for query in list(waiting):
                if (_ask(prometheus, "query", query=query) or {}).get("result"):
                    del waiting[query]
            return not waiting

        # Each query has to have a series; those of rates need two scrapes.
        wait_until(answered, "every query of the dashboard has an answer")
        rules = [rule for group in _ask(prometheus, "rules")["groups"] for rule in group["rules"]]
        assert len(rules) > 10
        wait_until(
            lambda: all(
                rule["health"] == "ok" for group in _ask(prometheus, "rules")["groups"] for rule in group["rules"]
            ),
            "every rule is evaluated",
        )


def test_executions_are_counted_by_the_label_of_their_agent_and_wait_on_its_queue(measured: Measured, cli: Cli) -> None:
    _, address, _ = measured
    ended = 'tachikoma_executions_total{agent_class="web",state="succeeded"}'
    before = read_metrics(address)
    assert ended not in before
    assert cli.run("agents", "label", "agent-1", "role=web").returncode == 0
    try:
        # The orchestrator that changed the label knows it at once.
        assert cli.run("exec", "agent-1", "true").returncode == 0
        after = wait_until(
            lambda: (found := read_metrics(address)).get(ended) == 1 and found, "the execution is counted in its class"
        )
    finally:
        assert cli.run("agents", "label", "agent-1", "role-").returncode == 0
    queued = "tachikoma_queue_seconds_count"
    assert after[queued] == before[queued] + 1
    assert 0 <= after["tachikoma_queue_seconds_sum"] - before["tachikoma_queue_seconds_sum"] < PATIENCE_SECONDS


def test_only_operators_ask_for_policy_and_trail(measured: Measured) -> None:
    with Client(measured[0].issue(user_id(TRUST_DOMAIN, "somebody"))) as somebody:
        for call in (somebody.policy_status, somebody.audit):
            with pytest.raises(PermissionDenied, match="only operators"):
                call()


def test_without_schedules_that_is_said(measured: Measured) -> None:
    with Client(measured[0].profile()) as client, pytest.raises(FailedPrecondition, match="TACHIKOMA_SCHEDULES"):
        client.schedules()


def test_how_far_the_audit_log_is_behind_is_measured(measured: Measured, cli: Cli) -> None:
    _, address, _ = measured
    assert cli.run("exec", "agent-1", "true").returncode == 0
    waiting = [name for name in read_metrics(address) if name.startswith("tachikoma_audit_waiting")]
    assert waiting
    wait_until(lambda: all(read_metrics(address)[name] == 0 for name in waiting), "nothing waits")
    assert read_metrics(address)["tachikoma_audit_closed"] == 0


def test_a_proposed_policy_is_compared_on_the_requests_there_were(measured: Measured, cli: Cli, tmp_path: Path) -> None:
    stack, _, _ = measured
    for command in (["uname"], ["uname"], ["id"]):
        assert cli.run("exec", "agent-1", *command).returncode == 0
    new = tmp_path / "new.yaml"
    new.write_text(stack.policy.read_text().replace("[reboot,", "[reboot, uname,"))
    log = stack.data / "audit"
    wait_until(lambda: '"id"' in (log / "audit.jsonl").read_text(), "the log has it")
    for source in ([], ["--file", str(log)]):
        done = cli.run("policy", "diff", str(stack.policy), str(new), *source)
        assert done.returncode == 1
        text = done.stdout.decode()
        assert f"{stack.user} on agent-1: uname (2 times)\n  was allowed by everybody\n  now denied: " in text
        assert text.endswith(" requests, 1 different decisions\n")
    assert cli.run("policy", "diff", str(stack.policy), str(stack.policy)).returncode == 0


def test_the_audit_log_is_shown_exported_and_verified(measured: Measured, cli: Cli, tmp_path: Path) -> None:
    stack, _, _ = measured
    log = stack.data / "audit" / "audit.jsonl"
    assert cli.run("exec", "--id", "shown", "agent-1", "--", "sh", "-c", "exit 3", "--token", "hunter2").returncode == 3
    wait_until(lambda: '"shown"' in log.read_text() and '"failed"' in log.read_text(), "the log has it")
    for source in ([], ["--file", str(log)]):
        told = cli.run("audit", "show", "shown", *source).stdout.decode()
        steps = [line.split("  ")[1] for line in told.splitlines() if line and not line.startswith(" ")]
        assert steps == ["admitted", "dispatched", "started", "failed"]
        assert "hunter2" not in told
        exported = cli.run("audit", "export", "--format", "ocsf", *source).stdout.decode().splitlines()
        activities = [json.loads(line) for line in exported]
        assert {activity["class_uid"] for activity in activities} >= {1007}
        first, second = (cli.run("audit", "export", "--after", after, *source).stdout for after in ("0", "3"))
        assert len(first.splitlines()) == len(second.splitlines()) + 3

    done = cli.run("audit", "verify", str(log))
    assert (done.returncode, done.stderr) == (0, b"")
    assert " is unaltered: " in done.stdout.decode()
    copy = tmp_path / "audit.jsonl"
    copy.write_text(log.read_text().replace("admitted", "denied", 1))
    done = cli.run("audit", "verify", str(copy))
    assert done.returncode == 1
    assert "was ALTERED" in done.stdout.decode()
    done = cli.run("audit", "show", "never-heard-of")
    assert (done.returncode, done.stderr) == (1, b"tachikoma: the audit trail has no event of 'never-heard-of'\n")
