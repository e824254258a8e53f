"""Signatures of commands, without a broker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain, group
from kombu.transport.memory import Channel

from authority import Authority
from tachikoma import (
    BatchRequest,
    BatchState,
    BatchStatus,
    ConfigurationError,
    ExecRequest,
    ExecutionFailed,
    InvalidRequest,
    Profile,
    Unauthenticated,
)
from tachikoma.celery import BATCH_TASK_NAME, MAX_VALID, PROGRESS, TASK_NAME, BatchTaskResult, CommandResult, Commands
from tachikoma.identity.bundles import TrustBundle
from tachikoma.identity.signed_batches import SignedBatchRequest
from tachikoma.identity.signed_messages import SignedRequest
from tachikoma.identity.signing import verify
from tachikoma.identity.spiffe import SpiffeId
from tachikoma.redis import keys

REPORTS = "spiffe://tachikoma.local/service/reports"
ORCHESTRATOR = "spiffe://tachikoma.local/service/orchestrator"


@pytest.fixture
def app() -> Celery:
    # The queues of this transport live as long as the process.
    Channel.queues.clear()
    return Celery("reports", broker="memory://", set_as_current=False)


@pytest.fixture
def profile(authority: Authority, tmp_path: Path) -> Profile:
    authority.write(tmp_path, REPORTS)
    return Profile(address="127.0.0.1:1", server_name="x", identity=tmp_path)


@pytest.fixture
def commands(app: Celery, profile: Profile) -> Iterator[Commands]:
    made = Commands(app, profile=profile, valid=timedelta(minutes=5))
    yield made
    made.close()


def claims(authority: Authority, token: str) -> SignedRequest:
    """What a submitter reads from a signature."""
    bundle = TrustBundle("tachikoma.local", [authority.certificate])
    return verify(token, SignedRequest, bundle, SpiffeId.parse(REPORTS))


def test_a_signature_is_an_ordinary_one_for_the_submitters_queue(commands: Commands) -> None:
    request = ExecRequest(id="job-7", agent_id="web-1", command=("uptime",))
    signature = commands.signature(request)
    assert signature.task == TASK_NAME
    assert signature.immutable
    assert signature.options == {"queue": keys.SUBMIT, "argsrepr": "('web-1', 'job-7')"}
    assert signature.kwargs == {"check": True}
    assert commands.signature(request, check=False).kwargs == {"check": False}


def test_a_signature_contains_the_signed_request(commands: Commands, authority: Authority) -> None:
    request = ExecRequest(agent_id="web-1", command=("uptime", "ä"), timeout=timedelta(seconds=9))
    (token,) = commands.signature(request).args
    found = claims(authority, token)
    assert (found.iss, found.aud, found.jti, found.request) == (REPORTS, ORCHESTRATOR, request.id, request)
    assert found.exp - found.iat == 300
    assert abs(found.iat - datetime.now(UTC).timestamp()) < 60


def test_fields_of_the_request_are_arguments(commands: Commands, authority: Authority) -> None:
    (token,) = commands.s("web-1", ["ls"], user="web", environment={"A": "b"}).args
    request = claims(authority, token).request
    assert (request.agent_id, request.command, request.user, request.environment) == (
        "web-1",
        ("ls",),
        "web",
        {"A": "b"},
    )


@pytest.mark.parametrize("fields", [{"timeout": timedelta(0)}, {"user": "0"}, {"no_such_field": 1}])
def test_a_wrong_field_is_refused_where_it_is_written(commands: Commands, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        commands.s("web-1", ["ls"], **fields)


def test_results_of_an_application_have_its_prefix(app: Celery, profile: Profile) -> None:
    commands = Commands(app, profile=profile, application="reports")
    request = ExecRequest(agent_id="web-1", command=("ls",))
    assert commands.signature(request).options["task_id"] == keys.application_task_id("reports", request.id)
    commands.close()


def test_the_orchestrator_may_have_another_name_and_trust_domain(
    app: Celery, profile: Profile, authority: Authority
) -> None:
    elsewhere = replace(profile, trust_domain="partner.example")
    commands = Commands(app, profile=elsewhere, orchestrator="control")
    (token,) = commands.s("web-1", ["ls"]).args
    assert claims(authority, token).aud == "spiffe://partner.example/service/control"
    commands.close()


@pytest.mark.parametrize("valid", [timedelta(0), -MAX_VALID, MAX_VALID + timedelta(seconds=1)])
def test_the_validity_is_bounded(app: Celery, profile: Profile, valid: timedelta) -> None:
    with pytest.raises(ConfigurationError, match="is valid for at most 1 day"):
        Commands(app, profile=profile, valid=valid)


@pytest.mark.parametrize("name", ["a.b", "-a", "x" * 64])
def test_the_name_of_an_application_is_an_id(app: Celery, profile: Profile, name: str) -> None:
    with pytest.raises(ConfigurationError, match="is no name of an application"):
        Commands(app, profile=profile, application=name)


def test_an_identity_that_has_expired_signs_nothing(
    commands: Commands, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    expired = authority.svid(REPORTS, end=datetime.now(UTC) - timedelta(seconds=1))
    monkeypatch.setattr(commands._identity, "current", lambda: expired)
    with pytest.raises(Unauthenticated, match="cannot be used"):
        commands.s("web-1", ["ls"])


def queued(app: Celery) -> int:
    """The number of messages on the submitters' queue."""
    with app.connection_for_read() as connection:
        return int(connection.default_channel.queue_declare(keys.SUBMIT).message_count)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("countdown", 10),
        ("countdown", 0.5),
        ("eta", datetime(2030, 1, 1, tzinfo=UTC)),
        ("expires", 60),
        ("expires", datetime(2030, 1, 1, tzinfo=UTC)),
        ("time_limit", 5),
        ("soft_time_limit", 5),
        ("priority", 3),
        ("compression", "gzip"),
        ("serializer", "pickle"),
        ("queue", "celery"),
        ("routing_key", "elsewhere"),
    ],
)
def test_an_option_that_would_have_no_effect_is_refused_where_it_is_sent(
    app: Celery, commands: Commands, option: str, value: Any
) -> None:
    signature = commands.s("web-1", ["uptime"])
    refused = f"Celery's option {option} "
    for send in (
        lambda: signature.apply_async(**{option: value}),
        lambda: signature.clone().set(**{option: value}).delay(),
        lambda: group(signature.clone(), signature.clone()).apply_async(**{option: value}),
        lambda: group(signature.clone().set(**{option: value})).delay(),
        lambda: chain(signature.clone().set(**{option: value}), signature.clone()).delay(),
        lambda: chain(signature.clone(), signature.clone().set(**{option: value})).delay(),
        lambda: signature.clone().apply_async(link=signature.clone().set(**{option: value})),
        lambda: signature.clone().apply_async(link_error=[signature.clone().set(**{option: value})]),
    ):
        with pytest.raises(InvalidRequest, match=refused):
            send()
    assert queued(app) == 0


@pytest.mark.parametrize(
    "options", [{}, {"countdown": None}, {"priority": 0}, {"serializer": "json"}, {"retry": False}]
)
def test_other_options_are_sent(app: Celery, commands: Commands, options: dict[str, Any]) -> None:
    before = queued(app)
    result = commands.s("web-1", ["uptime"]).apply_async(**options)
    assert isinstance(result, CommandResult)
    assert queued(app) == before + 1


def test_a_serializer_of_the_application_is_not_used(app: Celery, commands: Commands) -> None:
    app.conf.task_serializer = "yaml"
    commands.s("web-1", ["uptime"]).delay()
    with app.connection_for_read() as connection:
        message = connection.default_channel.basic_get(keys.SUBMIT)
        assert message.content_type == "application/json"


def test_a_result_says_how_its_command_is_cancelled(commands: Commands) -> None:
    signature = commands.signature(ExecRequest(id="job-7", agent_id="web-1", command=("uptime",)))
    signature.set(task_id="app:reports:job-7")
    for result in (signature.delay(), signature.freeze(), group(signature).apply_async().results[0]):
        with pytest.raises(InvalidRequest, match=r"use tachikoma\.Client\(\)\.cancel\('job-7'\)"):
            result.revoke(terminate=True)
        with pytest.raises(InvalidRequest, match="expires by itself"):
            result.forget()


def test_a_worker_of_the_application_runs_no_command(app: Celery, commands: Commands) -> None:
    assert commands.s("web-1", ["uptime"]).task in app.tasks
    with pytest.raises(InvalidRequest, match="by `tachikoma submitter`"):
        app.tasks[TASK_NAME].run()


# --- batches ----------------------------------------------------------------------------------------------------------


def status(**changes: Any) -> BatchStatus:
    values = {
        "id": "b1", "state": BatchState.RUNNING, "requested_by": REPORTS, "command": ("uptime",), "digest": "0" * 64,
        "total": 2, "totals": {"SUCCEEDED": 1, "RUNNING": 1}, "submit_time": datetime(2030, 1, 1, tzinfo=UTC),
    }  # fmt: skip
    return BatchStatus(**{**values, **changes})


ENDED = status(state=BatchState.DONE, totals={"SUCCEEDED": 1, "FAILED": 1}, end_time=datetime(2030, 1, 2, tzinfo=UTC))


def test_a_batch_is_a_signature_with_the_signed_request(commands: Commands, authority: Authority) -> None:
    request = BatchRequest(id="b1", targets=("web-*",), command=("echo", "{agent}"), parallel="10%", canary=1)
    signature = commands.batch_signature(request)
    assert (signature.task, signature.immutable) == (BATCH_TASK_NAME, True)
    assert signature.options == {"queue": keys.SUBMIT, "argsrepr": "('batch', 'b1')"}
    bundle = TrustBundle("tachikoma.local", [authority.certificate])
    found = verify(signature.args[0], SignedBatchRequest, bundle, SpiffeId.parse(REPORTS))
    assert (found.iss, found.aud, found.jti, found.batch) == (REPORTS, ORCHESTRATOR, "b1", request)
    assert found.exp - found.iat == 300


def test_fields_of_a_batch_are_arguments_and_wrong_ones_are_refused(commands: Commands, authority: Authority) -> None:
    (token,) = commands.batch(["web-*", "!web-3"], ["ls"], stop_after="3", user="web", check=False).args
    bundle = TrustBundle("tachikoma.local", [authority.certificate])
    found = verify(token, SignedBatchRequest, bundle, SpiffeId.parse(REPORTS)).batch
    assert (found.targets, found.stop_after, found.user) == (("web-*", "!web-3"), "3", "web")
    with pytest.raises(InvalidRequest, match="parallel"):
        commands.batch(["web-*"], ["ls"], parallel="many")
    with pytest.raises(InvalidRequest, match="targets and command"):
        commands.batch([], [])


def test_options_of_a_batch_are_checked_as_those_of_a_command(app: Celery, commands: Commands) -> None:
    signature = commands.batch(["web-*"], ["uptime"])
    for send in (
        lambda: signature.apply_async(countdown=3),
        lambda: chain(commands.s("web-1", ["true"]), signature.clone().set(priority=3)).delay(),
    ):
        with pytest.raises(InvalidRequest, match="Celery's option"):
            send()
    assert queued(app) == 0
    result = signature.set(task_id="app:reports:b1").delay()
    assert queued(app) == 1
    assert isinstance(result, BatchTaskResult)
    assert result.batch_id == "b1"
    with pytest.raises(InvalidRequest, match=r"use tachikoma\.Client\(\)\.cancel_batch\('b1'\)"):
        result.revoke()


@pytest.fixture
def batch(profile: Profile) -> Iterator[BatchTaskResult]:
    """The result of a batch of an application whose result backend is in memory."""
    app = Celery("reports", broker="memory://", backend="cache+memory://", set_as_current=False)
    made = Commands(app, profile=profile)
    result = made.batch_signature(BatchRequest(id="b1", targets=("web-*",), command=("uptime",))).delay()
    assert isinstance(result, BatchTaskResult)
    yield result
    made.close()


def test_the_summary_of_a_batch_is_its_latest_status(batch: BatchTaskResult) -> None:
    assert batch.summary() is None
    batch.backend.store_result(batch.id, {"batch": status().to_dict()}, PROGRESS)
    assert batch.summary() == status()
    batch.backend.store_result(batch.id, {"batch": ENDED.to_dict(), "results": []}, "SUCCESS")
    assert batch.summary() == ENDED


def test_a_batch_that_was_refused_or_failed_raises_its_error(batch: BatchTaskResult) -> None:
    with pytest.raises(ExecutionFailed, match=r"is DONE with 1 of 2 targets succeeded \(1 FAILED\)") as caught:
        ENDED.check()
    batch.backend.store_result(batch.id, caught.value, "FAILURE")
    with pytest.raises(ExecutionFailed, match="see `tachikoma batches status b1`"):
        batch.summary()
    assert status(totals={"SUCCEEDED": 2}).check().total == 2


async def test_a_batch_is_watched_until_nothing_of_it_runs(batch: BatchTaskResult) -> None:
    batch.backend.store_result(batch.id, {"batch": status().to_dict()}, PROGRESS)

    def end() -> None:
        batch.backend.store_result(batch.id, {"batch": ENDED.to_dict(), "results": []}, "SUCCESS")

    seen = []
    for found in batch.watch(interval=0.01):
        seen.append(found)
        end()
    assert seen == [status(), ENDED]
    assert [found async for found in batch.watch_async(interval=0.01)] == [ENDED]


def test_each_application_of_a_process_has_its_own_tasks(app: Celery, profile: Profile) -> None:
    other = Celery("others", broker="memory://", set_as_current=False)
    first, second = Commands(app, profile=profile), Commands(other, profile=profile)
    for commands, owner in ((first, app), (second, other)):
        for signature in (commands.s("web-1", ["ls"]), commands.batch(["web-1"], ["ls"])):
            assert signature.app is owner
            assert signature.type.app is owner
        for name in (TASK_NAME, BATCH_TASK_NAME):
            assert owner.tasks[name].AsyncResult("x").app is owner
        commands.close()
