"""Batches of Celery applications: signed, accepted once, watched until their end, with bounded output."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from admissions import ALICE, DOMAIN, ORCHESTRATOR
from batches import BatchStand
from patience import PATIENCE_SECONDS
from tachikoma.dev.ca import DevelopmentCA
from tachikoma.errors import AlreadyExists, InvalidRequest, NotFound, Unauthenticated
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.signed_batches import SignedBatchRequest
from tachikoma.identity.signed_messages import SignedRequest
from tachikoma.identity.signing import sign
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.batches import BatchRequest, BatchResult, BatchState, BatchStatus, TargetState
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.batches.watch import BatchWatch
from tachikoma_orchestrator.processes.batch_submission import MAX_OUTPUT_BYTES, document, execute_batch
from tachikoma_orchestrator.processes.parts import Core

Answer = tuple[BatchStatus, list[BatchResult]]


class Application:
    """An application, and a submitter that has no process around it."""

    def __init__(self, stand: BatchStand, folder: Path) -> None:
        self.stand = stand
        DevelopmentCA(folder / "ca", DOMAIN).issue(ALICE, folder / "application")
        self.svid = FileSvidSource(folder / "application").current()
        parts = {
            "identity": stand.stand.identity, "trail": stand.stand.trail, "registry": stand.stand.registry,
            "batches": stand.rooms[0],
        }  # fmt: skip
        self.core = cast(Core, SimpleNamespace(**parts))
        self.reported: list[BatchStatus] = []
        #: Set with the first report.
        self.watched = asyncio.Event()

    def token(self, request: BatchRequest, **claims: Any) -> str:
        """A signed request, with claims that may be wrong."""
        now = int(time.time())
        fields = {
            "iss": str(ALICE), "aud": str(ORCHESTRATOR), "jti": request.id, "iat": now, "exp": now + 60,
            "batch": request,
        }  # fmt: skip
        return sign(self.svid, SignedBatchRequest(**{**fields, **claims}))

    async def run(self, token: object) -> Answer:
        """Do what the submitter does with a message."""

        async def report(status: BatchStatus) -> None:
            self.reported.append(status)
            self.watched.set()

        return await execute_batch(self.core, token, report)

    @asynccontextmanager
    async def running(self, request: BatchRequest) -> AsyncIterator[asyncio.Task[Answer]]:
        """Let the submitter wait for a batch all of whose targets were started."""
        task = asyncio.create_task(self.run(self.token(request)))
        await asyncio.wait_for(self.watched.wait(), PATIENCE_SECONDS)
        await self.stand.step(request.id)
        yield task
        await asyncio.wait_for(task, PATIENCE_SECONDS)


@pytest.fixture
async def application(redis: Redis, tmp_path: Path) -> Application:
    return Application(await BatchStand.make(redis, tmp_path, 2), tmp_path)


def request(**values: Any) -> BatchRequest:
    return BatchRequest(**{"targets": ("web-*",), "command": ("true",), **values})


async def test_a_batch_is_accepted_for_its_signer_and_returns_each_end(application: Application) -> None:
    wanted = request()
    async with application.running(wanted) as task:
        await application.stand.end("web-1")
        await application.stand.end("web-2", ExecState.FAILED, exit_code=3)
    status, results = task.result()
    assert (status.state, status.requested_by) == (BatchState.DONE, str(ALICE))
    assert {result.agent_id: (result.state, result.exit_code) for result in results} == {
        "web-1": (TargetState.SUCCEEDED, 0), "web-2": (TargetState.FAILED, 3),
    }  # fmt: skip
    assert all(not reported.ended and reported.id == wanted.id for reported in application.reported)
    value = document(status, results)
    assert BatchStatus.from_dict(value["batch"]) == status
    assert [BatchResult.from_dict(result) for result in value["results"]] == results


async def test_a_message_that_comes_again_starts_nothing_although_its_signature_expired(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = request()
    async with application.running(wanted) as task:
        for agent in ("web-1", "web-2"):
            await application.stand.end(agent)
    # Also the agents are gone by then.
    monkeypatch.setattr(application.stand.stand.registry, "known_labels", lambda: pytest.fail("resolved again"))
    expired = application.token(wanted, iat=int(time.time()) - 300, exp=int(time.time()) - 200)
    assert await application.run(application.token(wanted)) == await application.run(expired) == task.result()
    assert application.stand.sent == {"web-1": 1, "web-2": 1}
    other = application.token(request(id=wanted.id, command=("false",)))
    with pytest.raises(AlreadyExists):
        await application.run(other)


async def test_what_is_not_signed_for_a_batch_is_refused_and_recorded(application: Application) -> None:
    now, wanted = int(time.time()), request()
    single = ExecRequest(agent_id="web-1", command=("true",))
    claims = {"iss": str(ALICE), "aud": str(ORCHESTRATOR), "jti": single.id, "iat": now, "exp": now + 60}
    wrong: dict[str, object] = {
        "is not signed": {"batch": wanted.to_dict()},
        "not a 'tachikoma-batch-request": sign(application.svid, SignedRequest(**claims, request=single)),
        "was valid until": application.token(wanted, iat=now - 300, exp=now - 200),
        "not for spiffe://": application.token(wanted, aud=f"spiffe://{DOMAIN}/service/other"),
    }
    for reason, token in wrong.items():
        with pytest.raises(Unauthenticated, match=reason):
            await application.run(token)
    await application.stand.stand.trail.count_refusals()
    page = await application.stand.stand.trail.read(limit=100)
    reasons = [event.reason for event in page.events if event.event == AuditCode.IDENTITY_REJECTED]
    assert all(any(why in reason for reason in reasons) for why in wrong)
    assert await application.stand.store.newest(9) == []


async def test_a_request_that_cannot_be_resolved_is_refused(application: Application) -> None:
    with pytest.raises(InvalidRequest, match="no agent matches"):
        await application.run(application.token(request(targets=("mail-*",))))


async def test_a_batch_that_redis_forgets_is_not_waited_for(application: Application) -> None:
    wanted = request()
    task = asyncio.create_task(application.run(application.token(wanted)))
    await asyncio.wait_for(application.watched.wait(), PATIENCE_SECONDS)
    await application.stand.redis.delete(keys.batch(wanted.id)[0])
    with pytest.raises(NotFound, match="is gone"):
        await asyncio.wait_for(task, PATIENCE_SECONDS)


async def test_output_is_bounded_and_every_end_is_there(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def with_output(self: BatchWatch, result: BatchResult) -> BatchResult:
        return result.model_copy(update={"stdout": b"x" * (MAX_OUTPUT_BYTES - 1), "stderr": b""})

    monkeypatch.setattr(BatchWatch, "_with_output", with_output)
    wanted = request()
    async with application.running(wanted) as task:
        await application.stand.end("web-1", sha256="1" * 64)
        await application.stand.end("web-2", sha256="2" * 64)
    _, results = task.result()
    assert sorted(result.agent_id for result in results) == ["web-1", "web-2"]
    assert sorted(len(result.stdout or b"") for result in results) == [0, MAX_OUTPUT_BYTES - 1]
