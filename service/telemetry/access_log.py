"""The access log: one log line for each request, written when the request has ended.

It holds no image bytes, no paths (the address of an image is its code), and of API keys only the names.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import cache
from typing import Any, cast

import structlog
from structlog.typing import FilteringBoundLogger

from service.telemetry.request_record import PROBES, RequestRecord


@cache
def _log() -> FilteringBoundLogger:
    """A logger of structlog itself: logging and its formatters take several times as long. First called when structlog is
    configured.
    """
    return cast("FilteringBoundLogger", structlog.get_logger().bind(logger=__name__))


def log_request(request: RequestRecord) -> None:
    """Logs one request: 5xx as a warning, health probes as debug, all others as info. See docs/operations.md.

    A log that cannot be written does not fail the request.
    """
    if request.code >= 500:
        level = logging.WARNING
    elif request.route in PROBES:
        level = logging.DEBUG
    else:
        level = logging.INFO
    timings = request.timings
    fields: dict[str, Any] = {
        "request_id": request.request_id,
        "op": request.operation,
        "route": request.route,
        "method": request.method,
        "status": request.code,
        "outcome": request.outcome,
        "images": timings.images,
        "cache_hits": timings.cache_hits,
        "bytes_in": request.bytes_in,
        "bytes_out": request.bytes_out,
        "duration_ms": _milliseconds(request.seconds),
        "stages_ms": {stage: _milliseconds(seconds) for stage, seconds in timings.seconds.items()},
    }
    if request.trace_id is not None:
        fields["trace_id"] = request.trace_id
    if request.key_name is not None:
        fields["key_name"] = request.key_name
    with suppress(OSError, ValueError):
        _log().log(level, "request", **fields)


def _milliseconds(seconds: float) -> float:
    """To the microsecond. ``round`` to a number of digits formats the number and parses it again."""
    return round(1_000_000 * seconds) / 1000
