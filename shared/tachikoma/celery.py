"""Commands as signatures of an existing Celery application, with `AsyncResult`, groups and callbacks.

    from celery import Celery, group
    from tachikoma.celery import Commands

    app = Celery("reports", broker=..., backend=...)
    commands = Commands(app, application="reports")
    result = group(commands.s(agent, ["/usr/bin/uptime"]) for agent in ("web-1", "web-2"))()
    print([answer["exitCode"] for answer in result.get()])

Each signature contains the request, signed with the application's own X.509-SVID, because write access to the queue
alone grants nothing. A submitter verifies the request and admits it like the gRPC service. The guide is
`docs/celery.md`.

This module needs Celery with its Redis transport, which such an application already has.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, cast

from celery import Celery, Task
from celery.canvas import Signature
from celery.result import AsyncResult

from tachikoma.client.profile import Profile
from tachikoma.errors import ConfigurationError, InvalidRequest, Unauthenticated
from tachikoma.identity.open import open_identity
from tachikoma.identity.signed_messages import SignedRequest
from tachikoma.identity.signing import sign
from tachikoma.identity.spiffe import InvalidIdentity, service_id
from tachikoma.redis import keys
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.types import ID_PATTERN, is_identifier

__all__ = ["MAX_VALID", "TASK_NAME", "CommandResult", "Commands"]

#: The Celery task of submitters.
TASK_NAME = "tachikoma.submit"
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
        if workflow.get("task") == TASK_NAME:
            yield workflow.get("options") or {}
        else:
            for part in workflow.values():
                yield from _commands_in(part)
    elif isinstance(workflow, list | tuple):
        for part in workflow:
            yield from _commands_in(part)


class CommandResult(AsyncResult[Any]):
    """The result of a command. It cannot be revoked or deleted with Celery's means."""

    def revoke(self, *_: object, **__: object) -> None:
        """Refuse: a revocation would reach no worker, and Redis refuses it to an application.

        Raises:
            InvalidRequest: always; the message names the call to use.
        """
        raise InvalidRequest(
            f"Celery cannot revoke a command: use tachikoma.Client().cancel({self.id.rpartition(':')[2]!r}), "
            "which works while it runs, too"
        )

    def forget(self) -> None:
        """Refuse: an application may only read results, which expire by themselves.

        Raises:
            InvalidRequest: always.
        """
        raise InvalidRequest("the result of a command cannot be deleted by an application; it expires by itself")


class _Submission(Task[..., Any]):
    """The submitters' task as applications see it: it can be sent, with the options that have a meaning."""

    name = TASK_NAME
    typing = False

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
        return CommandResult(task_id, backend=self.backend, task_name=self.name, app=self.app, **attributes)


class Commands:
    """A maker of signatures for one application."""

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
        app.register_task(_Submission())
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
        svid = self._identity.current()
        try:
            svid.verify()
        except InvalidIdentity as error:
            raise Unauthenticated(f"your identity in {self._identity.place} cannot be used: {error}") from None
        now = int(time.time())
        claims = SignedRequest(
            iss=str(svid.spiffe_id),
            iat=now,
            aud=str(self._orchestrator),
            exp=now + int(self._valid.total_seconds()),
            jti=request.id,
            request=request,
        )
        options: dict[str, Any] = {"queue": keys.SUBMIT, "argsrepr": f"('{request.agent_id}', '{request.id}')"}
        if self._application:
            options["task_id"] = keys.application_task_id(self._application, request.id)
        return self._app.signature(
            TASK_NAME, args=(sign(svid, claims),), kwargs={"check": check}, immutable=True, options=options
        )

    def close(self) -> None:
        """Close the identity."""
        self._identity.close()
