"""Log output of every process: one event a line on standard error, as JSON or, on a terminal, as text.

Records of ``logging`` (of the service, of uvicorn, of libraries), warnings, uncaught exceptions and the access log all have
this format.
Each line is a single write, so that lines of several processes do not mix.
"""

from __future__ import annotations

import logging
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from service.settings import LogFormat

log = logging.getLogger(__name__)


def configure_log(process: str, *, level: str, log_format: LogFormat) -> None:
    """Writes what this process logs, from ``level`` on, to standard error; every line has the name of the process.

    Configures ``logging``, ``warnings``, hooks for uncaught exceptions, and structlog, which the access log uses.
    """

    def add_process(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event["process"] = process
        return event

    fields: list[Processor] = [structlog.processors.add_log_level, add_process]
    structlog.configure(
        processors=[*fields, *_renderers(log_format)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            # No other extras than the request id: what libraries attach to records may be secret.
            foreign_pre_chain=[
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(allow=["request_id"]),
                *fields,
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(log_format)],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def _renderers(log_format: LogFormat) -> list[Processor]:
    if log_format == "json" or (log_format == "auto" and not sys.stderr.isatty()):
        return [structlog.processors.format_exc_info, _as_json]
    # The default exception formatter would print the values of variables: images and keys among them.
    plain = structlog.dev.plain_traceback
    return [
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain, pad_level=False),
    ]


def _as_json(_: WrappedLogger, __: str, event: EventDict) -> str:
    event["timestamp"] = datetime.now(UTC)
    return orjson.dumps(event, default=repr, option=orjson.OPT_UTC_Z).decode()


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
    else:
        log.critical("the process ends with an exception", exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit and args.exc_value is not None:
        name = "a thread" if args.thread is None else f"thread {args.thread.name!r}"
        log.critical("%s ends with an exception", name, exc_info=(args.exc_type, args.exc_value, args.exc_traceback))
