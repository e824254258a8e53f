"""Signatures of commands, without a broker."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain, group
from kombu.transport.memory import Channel

from authority import Authority
from tachikoma import ConfigurationError, ExecRequest, InvalidRequest, Profile, Unauthenticated
from tachikoma.celery import MAX_VALID, TASK_NAME, CommandResult, Commands
from tachikoma.identity.bundles import TrustBundle
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
    elsewhere = profile.model_copy(update={"trust_domain": "partner.example"})
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
