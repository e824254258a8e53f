"""Structured logs on standard error: one JSON object per line, or text for people on a terminal.

A program that only uses the library configures `logging` as it likes. The library's loggers are below `tachikoma`, and
write nothing until the program adds a handler (Python's logging HOWTO, "Configuring Logging for a Library").
"""

from __future__ import annotations

import logging
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import structlog

__all__ = ["configure", "get_logger", "show_warnings"]

logging.getLogger("tachikoma").addHandler(logging.NullHandler())


class _Format:
    """The form in which the library's events reach `logging`."""

    #: Whether `configure` has installed its handler, which renders events itself.
    structured = False


class _LazyLogger:
    """A logger that imports structlog with its first event, since most commands of the client log nothing."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, method: str) -> Any:
        return getattr(_wrapped(self._name), method)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return a logger of the library, which writes through `logging` however structlog is configured.

    Args:
        name: name of the logger, which is that of the module.
    """
    return cast("structlog.stdlib.BoundLogger", _LazyLogger(name))


@cache
def _wrapped(name: str) -> structlog.stdlib.BoundLogger:
    import structlog

    logger: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            _to_logging,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    return logger


@cache
def _stamp() -> structlog.typing.Processor:
    import structlog

    return structlog.processors.TimeStamper(fmt="iso", utc=True)


def _to_logging(
    logger: logging.Logger, method: str, event: structlog.typing.EventDict
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments for `logging`: a line of text, or the event for the handler of `configure`."""
    if _Format.structured:
        import structlog

        stamped = cast("structlog.typing.EventDict", _stamp()(logger, method, event))
        return structlog.stdlib.ProcessorFormatter.wrap_for_formatter(logger, method, stamped)
    options = {name: event.pop(name) for name in ("exc_info", "stack_info", "stacklevel") if name in event}
    text = str(event.pop("event"))
    del event["level"]
    return (text + "".join(f" {name}={value!r}" for name, value in event.items()),), options


def show_warnings() -> None:
    """Write warnings of the library to standard error, as plain lines; `configure` replaces this."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("tachikoma: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)


def configure(level: str = "info") -> None:
    """Set up structlog, and write the log lines of libraries in the same format.

    Args:
        level: lowest level that is written: debug, info, warning, error or critical.
    """
    # Imported here, since commands of the client do not need it.
    import structlog

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        _stamp(),
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *([] if sys.stderr.isatty() else [structlog.processors.format_exc_info]),
                renderer,
            ],
        )
    )
    _Format.structured = True
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
