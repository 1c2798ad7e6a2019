"""What every process writes to standard error: a line an event, JSON for machines, words and columns on a terminal.

::

    logging.getLogger(...)    here, in uvicorn, in libraries ──┐
    warnings, and exceptions that nobody caught ───────────────┴─> structlog ─┐
    access_log.py ────────────────────────────────────────────────────────────┴─> one write a line

Lines of several processes do not mix: each is written at once.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from service.settings import LogFormat

__all__ = ["choose_renderer", "configure_log"]

log = logging.getLogger(__name__)


def configure_log(process: str, *, level: str, log_format: LogFormat) -> None:
    """Sends what this process logs, from ``level`` on, to standard error; every line bears the name of the process."""

    def name_process(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event["process"] = process
        return event

    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                # No other extras: libraries hang on records what is not for everybody to read.
                structlog.stdlib.ExtraAdder(allow=["request_id"]),
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                name_process,
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(log_format)],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def choose_renderer(log_format: LogFormat) -> Callable[[dict[str, Any]], str]:
    """How an event becomes a line, without its end."""
    if _is_json(log_format):
        return _as_json
    console = _console()
    return lambda event: console(None, "", event)


def _is_json(log_format: LogFormat) -> bool:
    return log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())


def _renderers(log_format: LogFormat) -> list[Processor]:
    if _is_json(log_format):
        return [structlog.processors.format_exc_info, lambda _, __, event: _as_json(dict(event))]
    return [_console()]


def _as_json(event: dict[str, Any]) -> str:
    return orjson.dumps(event, default=repr).decode()


def _console() -> structlog.dev.ConsoleRenderer:
    # The prettier tracebacks show what variables hold: images and keys among it.
    return structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_level=False
    )


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
    else:
        log.critical("the process ends with an exception", exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit and args.exc_value is not None:
        name = "a thread" if args.thread is None else f"thread {args.thread.name!r}"
        log.critical("%s ends with an exception", name, exc_info=(args.exc_type, args.exc_value, args.exc_traceback))
