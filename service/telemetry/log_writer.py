"""Standard error, written by a thread of its own: when nobody reads it, lines are dropped and counted, and nothing waits."""

from __future__ import annotations

import atexit
import io
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from itertools import accumulate, takewhile
from typing import TextIO, cast

log = logging.getLogger(__name__)

_MAX_BYTES = 1024 * 1024
_PAUSE_SECONDS = 0.02  # lines of this time are written together
_WHOLE_BYTES = 4096  # PIPE_BUF of Linux: a longer write to a pipe may mix with those of other processes
_DRAIN_SECONDS = 0.5


class LogWriter(io.TextIOBase):
    """A text stream in front of ``descriptor``. At most ``max_bytes`` wait to be written; ``dropped`` counts the lines that
    found no room or could not be written. Each call of ``write`` is a line; lines of a moment are written together, each in
    one piece.
    """

    def __init__(self, descriptor: int, *, max_bytes: int = _MAX_BYTES) -> None:
        self.dropped = 0
        self._descriptor = descriptor
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._lines: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def write(self, text: str) -> int:
        """Queues a line. Never waits and never raises."""
        line = text.encode(errors="backslashreplace")
        with self._changed:
            if self._num_bytes + len(line) > self._max_bytes:
                self.dropped += 1
                return len(text)
            if not self._lines:
                self._changed.notify_all()
            self._lines.append(line)
            self._num_bytes += len(line)
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_lines, name="log", daemon=True)
                self._thread.start()
        return len(text)

    def drain(self, seconds: float = _DRAIN_SECONDS) -> None:
        """Waits until all lines are written, or ``seconds`` pass without progress. It is not named ``flush``, because
        ``logging`` flushes a stream after each line.
        """
        with self._changed:
            while self._lines and self._changed.wait(seconds):
                pass

    def writable(self) -> bool:
        """True."""
        return True

    def isatty(self) -> bool:
        """Whether a terminal shows the lines."""
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def _write_lines(self) -> None:
        reported = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
            time.sleep(_PAUSE_SECONDS)
            with self._changed:
                waiting = list(self._lines)
            while waiting:
                count = max(1, sum(1 for _ in takewhile(_WHOLE_BYTES.__ge__, accumulate(map(len, waiting)))))
                lines, waiting = waiting[:count], waiting[count:]
                is_written = self._write_all(b"".join(lines))
                self._forget(lines, is_written=is_written)
                if is_written and (missing := self.dropped - reported):
                    reported += missing
                    log.warning(
                        "%d log lines were dropped: standard error was not read or could not be written", missing
                    )

    def _forget(self, lines: list[bytes], *, is_written: bool) -> None:
        with self._changed:
            for line in lines:
                self._lines.popleft()
                self._num_bytes -= len(line)
            self.dropped += 0 if is_written else len(lines)
            self._changed.notify_all()

    def _write_all(self, data: bytes) -> bool:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # another process made it non-blocking
                select.select((), (self._descriptor,), ())
            except OSError:
                return False
        return True


def write_standard_error_in_thread() -> None:
    """Replaces ``sys.stderr`` by a ``LogWriter``, for the rest of the process, if the process has a standard error."""
    if sys.__stderr__ is None:
        return
    writer = LogWriter(2)
    sys.stderr = cast("TextIO", writer)
    atexit.register(writer.drain)


def drain_standard_error() -> None:
    """Before ``os._exit``: waits briefly until what was logged is written."""
    if isinstance(sys.stderr, LogWriter):
        sys.stderr.drain()


def dropped_log_lines() -> int:
    """Number of lines that this process dropped."""
    return sys.stderr.dropped if isinstance(sys.stderr, LogWriter) else 0
