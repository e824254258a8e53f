"""Reports of unexpected errors to Sentry. Without a DSN nothing is reported, and `sentry_sdk` is not even imported.

These become one event each: a log line of level error or with an exception, from this package or a library; an
exception that ends the process or a thread; an exception of a Celery task. `error_events` builds the content itself,
without the values that Sentry collects.
"""

from __future__ import annotations

import logging
import platform
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic_settings import SettingsConfigDict

from tachikoma.config import error_events
from tachikoma.config.logs import get_logger
from tachikoma.config.settings import PartSettings
from tachikoma.errors import ConfigurationError

__all__ = ["ErrorReportingSettings", "concerns", "configure", "identify"]

log = get_logger(__name__)

#: Largest number of events that wait to be sent; more are dropped.
QUEUED_EVENTS = 30
#: Longest time that the end of a process waits for events to be sent, in seconds.
SHUTDOWN_SECONDS = 1.0

#: Loggers that report about the sending itself.
_SILENT = ("sentry_sdk", "urllib3")


class ErrorReportingSettings(PartSettings):
    """Settings of error reports: environment variables `TACHIKOMA_SENTRY_…`."""

    model_config = SettingsConfigDict(env_prefix="TACHIKOMA_SENTRY_", frozen=True, extra="ignore")

    #: DSN of the Sentry project; by default none, and nothing is reported. Sentry's own SENTRY_DSN is not read, since
    #: it may belong to other software of the host.
    dsn: SecretStr | None = None
    #: File that contains the DSN; by default none. It wins over `dsn`.
    dsn_file: Path | None = None
    #: Name of this installation in Sentry; "production" by default.
    environment: str = "production"

    def read_dsn(self) -> str:
        """Return the DSN, or "" if none is set.

        Raises:
            ConfigurationError: the file cannot be read, or is empty.
        """
        if self.dsn_file is None:
            return self.dsn.get_secret_value().strip() if self.dsn is not None else ""
        try:
            found = self.dsn_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"cannot read the DSN of Sentry in {self.dsn_file}: {error}") from error
        if not found:
            raise ConfigurationError(f"there is no DSN of Sentry in {self.dsn_file}")
        return found


def concerns(execution: str) -> None:
    """Set the execution that the current task or thread works on; its errors carry that id."""
    error_events.execution.set(execution)


def identify(trust_domain: str) -> None:
    """Tag this process's error reports with its trust domain."""
    error_events.process_tags["trust_domain"] = trust_domain


def configure(component: str, *, agent: str = "") -> None:
    """Start to report this process's errors to Sentry, if a DSN is set. Call it once, after `logs.configure`.

    Args:
        component: name of the command.
        agent: id of the agent that the process belongs to.

    Raises:
        ConfigurationError: the DSN is not valid, or `sentry-sdk` is not installed.
    """
    settings = ErrorReportingSettings()
    dsn = settings.read_dsn()
    if not dsn:
        return
    try:
        import sentry_sdk
    except ImportError as error:
        raise ConfigurationError(
            "TACHIKOMA_SENTRY_DSN is set, but sentry-sdk is not installed; "
            "pip install 'tachikoma-exec[orchestrator]' or 'tachikoma-exec[worker]'"
        ) from error
    try:
        sentry_sdk.init(dsn=dsn, environment=settings.environment, **_options())
    except ValueError:
        # The message does not repeat the DSN, with which anyone could send events.
        raise ConfigurationError(
            "TACHIKOMA_SENTRY_DSN is not a DSN of Sentry; it looks like https://KEY@HOST/PROJECT"
        ) from None
    error_events.process_tags.update(component=component, agent=agent)
    logging.getLogger().addHandler(_Handler(sentry_sdk.capture_exception, sentry_sdk.capture_message))
    _report_threads(sentry_sdk.capture_exception)
    log.info("errors.reported", environment=settings.environment)


def _options() -> dict[str, Any]:
    """Return Sentry's options: only what is listed here is collected and sent."""
    from sentry_sdk.integrations.atexit import AtexitIntegration
    from sentry_sdk.integrations.celery import CeleryIntegration
    from sentry_sdk.integrations.excepthook import ExcepthookIntegration

    return {
        "release": f"tachikoma-exec@{version('tachikoma-exec')}",
        "server_name": platform.node(),
        "before_send": error_events.before_send,
        # Only these integrations; for gRPC's see `docs/decisions/0018`.
        "default_integrations": False,
        "auto_enabling_integrations": False,
        "integrations": [
            AtexitIntegration(callback=lambda _pending, _timeout: None),
            ExcepthookIntegration(),
            # Nothing is added to Celery messages.
            CeleryIntegration(propagate_traces=False),
        ],
        "shutdown_timeout": SHUTDOWN_SECONDS,
        "transport_queue_size": QUEUED_EVENTS,
        # `before_send` would drop these too; so they are not even collected.
        "include_local_variables": False,
        "include_source_context": False,
        "max_request_body_size": "never",
        "max_breadcrumbs": 0,
        # Nothing but events is sent, and to no other address that the environment names.
        "auto_session_tracking": False,
        "send_client_reports": False,
        "enable_backpressure_handling": False,
        "propagate_traces": False,
        "spotlight": False,
        "debug": False,
        "keep_alive": False,
    }


def _report_threads(report: Callable[[BaseException], object]) -> None:
    """Report exceptions that end a thread; then call the previous hook."""
    before = threading.excepthook

    def in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            report(args.exc_value)
        before(args)

    threading.excepthook = in_thread


class _Handler(logging.Handler):
    """A log handler that reports errors: those that Tachikoma logs, and exceptions that libraries log."""

    def __init__(self, exception: Callable[..., Any], message: Callable[..., Any]) -> None:
        super().__init__(logging.INFO)
        self._exception = exception
        self._message = message

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(_SILENT):
            return
        try:
            self._take(record)
        except Exception:
            self.handleError(record)

    def _take(self, record: logging.LogRecord) -> None:
        fields: Mapping[str, Any] = {}
        # The text of a library's line may contain anything, so its logger is the name.
        name, given = record.name, record.exc_info
        if isinstance(record.msg, dict) and hasattr(record, "_logger"):
            fields = record.msg
            name, given = str(fields.get("event")), fields.get("exc_info")
        error = _exception(given)
        level = "fatal" if record.levelno >= logging.CRITICAL else record.levelname.lower()
        exec_id = str(fields.get("id") or error_events.execution.get())
        if record.levelno >= logging.ERROR and (fields or error is not None) and not error_events.budget.spent():
            tags = {"event": name, "execution": exec_id, "agent": str(fields.get("agent") or "")}
            if error is not None:
                self._exception(error, level=level, tags=tags)
            else:
                self._message(name, level=level, tags=tags)
        if fields:
            line = error_events.Breadcrumb(datetime.now(UTC), level, record.name, name, exec_id)
            error_events.breadcrumbs.append(line)


def _exception(given: Any) -> BaseException | None:
    """Return the exception of a log line, in whichever form it is given."""
    if given is True:
        given = sys.exc_info()
    if isinstance(given, tuple):
        given = given[1]
    return given if isinstance(given, BaseException) else None
