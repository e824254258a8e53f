"""Commands as signatures of an existing Celery application, with `AsyncResult`, groups and callbacks.

    from celery import Celery, group
    from tachikoma.celery import Commands

    app = Celery("reports", broker=..., backend=...)
    commands = Commands(app, application="reports")
    result = group(commands.s(agent, ["/usr/bin/uptime"]) for agent in ("web-1", "web-2"))()
    print([answer["exitCode"] for answer in result.get()])

    batch = commands.batch(["web-*"], ["/usr/bin/uptime"], parallel="10%").delay()
    for status in batch.watch():
        print(status.state, status.totals)

Each signature contains the request, signed with the application's own X.509-SVID, because write access to the queue
alone grants nothing. A submitter verifies the request and admits it like the gRPC service. The guide is
`docs/celery.md`.

This module needs Celery with its Redis transport, which such an application already has.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import timedelta
from types import new_class
from typing import Any, cast

from celery import Celery, Task
from celery.canvas import Signature
from celery.result import AsyncResult

from tachikoma.client.profile import Profile
from tachikoma.errors import ConfigurationError, InvalidRequest, Unauthenticated
from tachikoma.identity.open import open_identity
from tachikoma.identity.signed_batches import SignedBatchRequest
from tachikoma.identity.signed_messages import SignedRequest
from tachikoma.identity.signing import sign
from tachikoma.identity.spiffe import InvalidIdentity, service_id
from tachikoma.identity.svid import Svid
from tachikoma.redis import keys
from tachikoma.vocabulary.batches import BatchRequest, BatchStatus
from tachikoma.vocabulary.identifiers import ID_PATTERN, is_identifier
from tachikoma.vocabulary.requests import ExecRequest

__all__ = [
    "BATCH_TASK_NAME",
    "MAX_VALID",
    "PROGRESS",
    "TASK_NAME",
    "TASK_NAMES",
    "BatchTaskResult",
    "CommandResult",
    "Commands",
]

#: The Celery tasks of submitters: for a command on one agent, and for one on many.
TASK_NAME, BATCH_TASK_NAME = "tachikoma.submit", "tachikoma.submit_batch"
TASK_NAMES = frozenset({TASK_NAME, BATCH_TASK_NAME})
#: Celery's state of the task of a batch that has not ended; its meta data contain the batch's status.
PROGRESS = "PROGRESS"
#: Seconds between two looks at a watched batch.
WATCH_SECONDS = 0.5
#: Longest validity of a signed request.
MAX_VALID = timedelta(days=1)


_LATER = "a command is admitted when it arrives; use a schedule of the orchestrator, or send it later"
#: Options of Celery that a command cannot honour, and what to use instead.
REFUSED: dict[str, str] = {
    "countdown": _LATER,
    "eta": _LATER,
    "expires": "a signature can be admitted for the time of Commands(valid=…)",
    "time_limit": "the agent ends a command at its own timeout; use commands.s(…, timeout=…)",
    "soft_time_limit": "the agent ends a command at its own timeout; use commands.s(…, timeout=…)",
    "priority": "commands are admitted in their order, and Redis has no other queue for them",
    "compression": "the submitter reads no compressed message",
    "exchange": "the submitter reads one queue only",
    "routing_key": "the submitter reads one queue only",
}


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options of Celery that would have no effect or lose the message, also of the commands that follow.

    Args:
        options: the options of `apply_async`; None is the same as an option that is not given.

    Raises:
        InvalidRequest: there is such an option; the message says what to use instead.
    """
    for name, value in options.items():
        if value is None or (name == "priority" and value == 0):
            continue
        if name in REFUSED:
            raise InvalidRequest(f"Celery's option {name} cannot be used for a command: {REFUSED[name]}")
        if name in ("queue", "serializer"):
            expected = keys.SUBMIT if name == "queue" else "json"
            given = getattr(value, "name", value)
            if given != expected:
                raise InvalidRequest(
                    f"Celery's option {name} must be {expected!r} for a command, not {str(given)[:80]!r}"
                )
    for name in ("link", "link_error", "chain", "chord"):
        for following in _commands_in(options.get(name)):
            check_options(following)


def _commands_in(workflow: object) -> Iterator[Mapping[str, Any]]:
    """Yield the options of each command in a part of a workflow, which consists of dictionaries and lists."""
    if isinstance(workflow, Mapping):
        if workflow.get("task") in TASK_NAMES:
            yield workflow.get("options") or {}
        else:
            for part in workflow.values():
                yield from _commands_in(part)
    elif isinstance(workflow, list | tuple):
        for part in workflow:
            yield from _commands_in(part)


class CommandResult(AsyncResult[Any]):
    """The result of a command. It cannot be revoked or deleted with Celery's means."""

    #: The method of `tachikoma.Client` that cancels it.
    _cancel = "cancel"

    def revoke(self, *_: object, **__: object) -> None:
        """Refuse: a revocation would reach no worker, and Redis refuses it to an application.

        Raises:
            InvalidRequest: always; the message names the call to use.
        """
        raise InvalidRequest(
            f"Celery cannot revoke a command: use tachikoma.Client().{self._cancel}({self.id.rpartition(':')[2]!r}), "
            "which works while it runs, too"
        )

    def forget(self) -> None:
        """Refuse: an application may only read results, which expire by themselves.

        Raises:
            InvalidRequest: always.
        """
        raise InvalidRequest("the result of a command cannot be deleted by an application; it expires by itself")


class BatchTaskResult(CommandResult):
    """The result of a batch, and its progress until then."""

    _cancel = "cancel_batch"

    @property
    def batch_id(self) -> str:
        """Id of the batch, for `tachikoma.Client` and `tachikoma batches`."""
        return str(self.id).rpartition(":")[2]

    def summary(self) -> BatchStatus | None:
        """Return the latest status of the batch; None before a submitter has accepted it.

        Raises:
            TachikomaError: the batch was refused, or did not succeed on all targets and `check` is set.
        """
        # One read: the task may end between two.
        meta = self.backend.get_task_meta(self.id)
        state, content = meta["status"], meta["result"]
        if state in self.backend.EXCEPTION_STATES:
            raise content
        if state not in (PROGRESS, "SUCCESS"):
            return None
        return BatchStatus.from_dict(content["batch"])

    def watch(self, interval: float = WATCH_SECONDS) -> Iterator[BatchStatus]:
        """Yield the status of the batch at each change, until nothing of it runs any more.

        Args:
            interval: seconds between two reads; submitters report at most one change a second.

        Raises:
            TachikomaError: see `summary`.
        """
        last: BatchStatus | None = None
        while last is None or not last.ended:
            status = self.summary()
            if status is not None and status != last:
                last = status
                yield status
            else:
                time.sleep(interval)

    async def watch_async(self, interval: float = WATCH_SECONDS) -> AsyncIterator[BatchStatus]:
        """Do the same as `watch` without blocking the event loop.

        Args:
            interval: see `watch`.

        Raises:
            TachikomaError: see `summary`.
        """
        last: BatchStatus | None = None
        while last is None or not last.ended:
            # Celery's result backends block.
            status = await asyncio.to_thread(self.summary)
            if status is not None and status != last:
                last = status
                yield status
            else:
                await asyncio.sleep(interval)


class _Submission(Task[..., Any]):
    """The submitters' task for applications: a task that can only be sent, with the supported options."""

    name = TASK_NAME
    typing = False
    #: Class of its results.
    result_class: type[CommandResult] = CommandResult

    def run(self, *_: object, **__: object) -> None:
        """Refuse to run here: only a submitter admits commands."""
        raise InvalidRequest("commands are admitted by `tachikoma submitter`, not by a worker of the application")

    # The options that the stubs name one by one are all in `options`.
    def apply_async(  # type: ignore[override]
        self, args: Any = None, kwargs: Any = None, **options: Any
    ) -> AsyncResult[Any]:
        """Send the command.

        Raises:
            InvalidRequest: see `check_options`.
        """
        check_options(options)
        sent = {name: value for name, value in options.items() if value is not None}
        # Celery calls it with the id only, and a method knows the result backend of its application.
        result = cast("type[CommandResult]", self.AsyncResult)
        return self.app.send_task(self.name, args, kwargs, result_cls=result, **{"serializer": "json", **sent})

    def AsyncResult(self, task_id: str, **attributes: Any) -> AsyncResult[Any]:  # noqa: N802 (Celery's name)
        """Return the result of a command by the id of its task."""
        return self.result_class(task_id, backend=self.backend, task_name=self.name, app=self.app, **attributes)


class _BatchSubmission(_Submission):
    """The same for batches."""

    name = BATCH_TASK_NAME
    result_class = BatchTaskResult


class Commands:
    """Creates the signatures of commands for one application."""

    def __init__(
        self,
        app: Celery,
        *,
        profile: Profile | None = None,
        application: str = "",
        orchestrator: str = "orchestrator",
        valid: timedelta = timedelta(hours=1),
    ) -> None:
        """Open the identity; nothing is signed yet.

        Args:
            app: the application; its broker and result backend are the Redis of the orchestrator.
            profile: has the identity that signs, and the trust domain of the orchestrator; by default the user's own.
            application: name of its Redis ACL user, without `app.`. It becomes a prefix of task ids, so that only this
                user can read the results. Empty if Redis has no ACL users.
            orchestrator: last part of the orchestrator's SPIFFE ID `/service/<name>`.
            valid: how long a signature can be admitted after it was made, at most `MAX_VALID`. The time that it
                waits in a chain counts.

        Raises:
            ConfigurationError: there is no profile or identity, or an argument is wrong.
        """
        if not timedelta(0) < valid <= MAX_VALID:
            raise ConfigurationError(f"a signed request is valid for at most {MAX_VALID}, not for {valid}")
        if application and not is_identifier(application):
            raise ConfigurationError(f"{application[:80]!r} is no name of an application: {ID_PATTERN}")
        profile = profile or Profile.load()
        for task in (_Submission, _BatchSubmission):
            # A class of its own for each application: Celery keeps the application in the class of a task.
            app.register_task(new_class("Submission", (task,))())
        self._app = app
        self._identity = open_identity(profile.identity)
        self._application = application
        self._valid = valid
        self._orchestrator = service_id(
            profile.trust_domain or self._identity.current().spiffe_id.trust_domain, orchestrator
        )

    def s(self, agent_id: str, command: Sequence[str], *, check: bool = True, **fields: Any) -> Signature:
        """Make the signature of a command; see `signature`.

        Args:
            agent_id: the agent to run on.
            command: the argv.
            check: see `signature`.
            fields: further fields of `ExecRequest`: `timeout`, `user`, `environment`, …

        Raises:
            InvalidRequest: one of these breaks a bound.
            Unauthenticated: see `signature`.
        """
        return self.signature(ExecRequest(agent_id=agent_id, command=command, **fields), check=check)

    def signature(self, request: ExecRequest, *, check: bool = True) -> Signature:
        """Make the signature of a request. It is immutable: in a chain it does not take the result before it.

        Its command runs at most once, even if the signature is sent several times. Its result is an `ExecResponse` as
        a dictionary with the spec's names; `ExecResponse.from_dict` reads it.

        Args:
            request: the command to run.
            check: whether the task fails with `ExecutionFailed` unless the command ends with exit code 0. Then
                `link_error` is called and a chain ends. Without it, only a refusal fails the task.

        Raises:
            Unauthenticated: the identity is expired or not trusted by its own bundle.
        """
        svid, claims = self._claims(request.id)
        token = sign(svid, SignedRequest(**claims, request=request))
        return self._signed(TASK_NAME, request.id, token, check=check, shown=request.agent_id)

    def batch(
        self, targets: Sequence[str], command: Sequence[str] = (), *, check: bool = True, **fields: Any
    ) -> Signature:
        """Make the signature of a batch: one command on many agents; see `batch_signature`.

        Args:
            targets: target expressions; empty only with `retry_of`.
            command: the argv; `{agent}` and `{label:NAME}` are replaced for each target. Empty only with `retry_of`.
            check: see `batch_signature`.
            fields: further fields of `BatchRequest`: `parallel`, `canary`, `stop_after`, `deadline`, …

        Raises:
            InvalidRequest: one of these breaks a bound.
            Unauthenticated: see `signature`.
        """
        return self.batch_signature(BatchRequest(targets=targets, command=command, **fields), check=check)

    def batch_signature(self, request: BatchRequest, *, check: bool = True) -> Signature:
        """Make the signature of a batch. Like that of a command, it is immutable and runs at most once.

        Its result is a `BatchTaskResult`. Its value, once nothing of the batch runs any more, is a dictionary: `batch`
        is the final `BatchStatus`, and `results` has a `BatchResult` for each target. Equal output is only in the
        first of its results, and there is at most 1 MiB of output; `Client.watch_batch` has all of it.

        Args:
            request: the batch.
            check: whether the task fails with `ExecutionFailed` unless the command succeeds on every target. Then
                `link_error` is called and a chain ends. Without it, only a refusal fails the task.

        Raises:
            Unauthenticated: see `signature`.
        """
        svid, claims = self._claims(request.id)
        token = sign(svid, SignedBatchRequest(**claims, batch=request))
        return self._signed(BATCH_TASK_NAME, request.id, token, check=check, shown="batch")

    def _claims(self, request_id: str) -> tuple[Svid, dict[str, Any]]:
        """Return the signer, and the claims that signed requests of all kinds have. Raises as `signature` does."""
        svid = self._identity.current()
        try:
            svid.verify()
        except InvalidIdentity as error:
            raise Unauthenticated(f"your identity in {self._identity.place} cannot be used: {error}") from None
        now = int(time.time())
        return svid, {
            "iss": str(svid.spiffe_id), "iat": now, "aud": str(self._orchestrator),
            "exp": now + int(self._valid.total_seconds()), "jti": request_id,
        }  # fmt: skip

    def _signed(self, task: str, request_id: str, token: str, *, check: bool, shown: str) -> Signature:
        """Return the signature of a task with a signed request; `shown` is for Celery's log."""
        options: dict[str, Any] = {"queue": keys.SUBMIT, "argsrepr": f"('{shown}', '{request_id}')"}
        if self._application:
            options["task_id"] = keys.application_task_id(self._application, request_id)
        return self._app.signature(task, args=(token,), kwargs={"check": check}, immutable=True, options=options)

    def close(self) -> None:
        """Close the identity."""
        self._identity.close()
