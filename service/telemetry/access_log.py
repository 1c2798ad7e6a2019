"""One line for each request: who asked for what, what it came to, and where the time went.

It does not go through ``logging``, which would cost an answer from the cache more than looking it up, and neither is each
line written by itself: those of a fiftieth of a second are written together. No bytes of images, no paths (an image's
address is its code), no keys, only their names.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from typing import Any

from service.settings import LogFormat, Settings
from service.telemetry.log_lines import choose_renderer
from service.telemetry.request_record import RequestRecord

__all__ = ["AccessLog", "open_access_log"]

_FLUSH_SECONDS = 0.02
_WHOLE_BYTES = 4096  # PIPE_BUF of Linux: of more at once, lines of several processes could mix in a pipe
_PROBES = ("/livez", "/readyz", "/healthz")


def open_access_log(process: str, settings: Settings) -> AccessLog | None:
    """That of a process, or None where the settings want none."""
    if not settings.access_log:
        return None
    return AccessLog(process, level=settings.log_level, log_format=settings.log_format)


class AccessLog:
    """The access lines of one process. Those of health probes are of level debug, those of 5xx answers warnings."""

    def __init__(self, process: str, *, level: str, log_format: LogFormat) -> None:
        self._process = process
        self._least = logging.getLevelNamesMapping()[level.upper()]
        self._render = choose_renderer(log_format)
        self._lines: list[str] = []
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None
        self._second = -1
        self._second_text = ""

    def write(self, request: RequestRecord) -> None:
        """Called in the event loop. Never fails: a log that cannot be written is no reason for a request to fail."""
        status, route = request.code, request.route
        if status >= 500:
            level, name = logging.WARNING, "warning"
        elif route in _PROBES:
            level, name = logging.DEBUG, "debug"
        else:
            level, name = logging.INFO, "info"
        if level < self._least:
            return
        timings = request.timings
        line: dict[str, Any] = {
            "timestamp": self._now(),
            "level": name,
            "event": "request",
            "logger": __name__,
            "process": self._process,
            "request_id": request.request_id,
            "op": request.operation,
            "route": route,
            "method": request.method,
            "status": status,
            "outcome": request.outcome,
            "images": timings.images,
            "cache_hits": timings.cache_hits,
            "bytes_in": request.bytes_in,
            "bytes_out": request.bytes_out,
            "duration_ms": _milliseconds(request.seconds),
            "stages_ms": {stage: _milliseconds(seconds) for stage, seconds in timings.seconds.items()},
        }
        if request.trace_id is not None:
            line["trace_id"] = request.trace_id
        if request.key_name is not None:
            line["key_name"] = request.key_name
        text = self._render(line) + "\n"
        size = len(text) if text.isascii() else len(text.encode())
        if self._size + size > _WHOLE_BYTES:
            self.flush()
        self._lines.append(text)
        self._size += size
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self.flush)

    def _now(self) -> str:
        """The time, UTC, in ISO 8601 with microseconds. What is before the point is made once for all lines of a second."""
        second, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
        if second != self._second:
            self._second, self._second_text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._second_text}.{microseconds:06d}Z"

    def flush(self) -> None:
        """Writes what has gathered; to be called before the event loop ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines, self._size = self._lines, [], 0
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write("".join(lines))


def _milliseconds(seconds: float) -> float:
    """To the nearest microsecond: ``round`` with digits takes five times as long."""
    return round(1_000_000 * seconds) / 1000
