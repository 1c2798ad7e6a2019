"""One HTTP connection, with bounds where uvicorn has none: what is refused before there is a request to speak of.

::

    first byte of a request ── header_timeout ──> 408      a connection that has sent nothing is closed
    line and headers, trailers, chunk extensions ── max_header_bytes ──> 431
    a connection too many ──> an idle one gives way; 503 if none is idle
    no HTTP ──> 400
    a body that nobody reads any more ── IGNORED_BYTES ──> closed

Answers are problem documents. Where one is due while an earlier answer of the same connection is still on its way, the
connection is closed instead. After an answer to a request that has not arrived as a whole, the connection lingers for a
second, and what still comes is dropped: closed at once, with bytes that have not been read, the system would reset it, and
the client might never see the answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.http.problems import (
    PROBLEM_MEDIA_TYPE,
    HeadersTooLarge,
    MalformedRequest,
    Problem,
    RequestTimeout,
    Unavailable,
    problem_response,
)

__all__ = ["ConnectionLimits", "LimitedProtocol"]

IGNORED_BYTES = 1024 * 1024
LINGER_SECONDS = 1.0
_CLOSE = {"Connection": "close"}


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """``connections`` of one server at a time; ``header_bytes`` and ``header_seconds`` of each request."""

    connections: int
    header_bytes: int
    header_seconds: float


class LimitedProtocol(HttpToolsProtocol):
    """Uvicorn's, bounded."""

    def __init__(self, *, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(**options)
        self._limits = limits
        self._header_timer: asyncio.TimerHandle | None = None
        self._unused_bytes = 0
        self._ignored_bytes = 0
        self._has_progressed = False
        self._is_lingering = False
        self._quiet_since = time.monotonic()

    @property
    def is_quiet(self) -> bool:
        """Whether no request is being answered, nor being received: the scope is made with a request's first byte, the
        cycle with the last of its header.
        """
        if self._is_lingering or self.transport.is_closing():
            return False
        cycle = self.cycle
        return bool(self.scope is None if cycle is None else cycle.response_complete and cycle.scope is self.scope)

    # --- the connection ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """From the event loop."""
        super().connection_made(transport)
        if self._are_too_many() and not self._close_an_idle_one():
            self._refuse(Unavailable("Too many connections are open.", retry_after=1.0))
            return
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """From the event loop."""
        self._forget_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """From the event loop."""
        if self._is_lingering or self.transport.is_closing():
            return
        self._has_progressed = False
        super().data_received(data)
        # The parser keeps a header, a trailer or a chunk's extension until it is whole, however long it is.
        self._unused_bytes = 0 if self._has_progressed else self._unused_bytes + len(data)
        if self._unused_bytes > self._limits.header_bytes:
            self._refuse(self._too_long())

    def _are_too_many(self) -> bool:
        """Those that linger have been answered, and take nobody's place."""
        allowed = self._limits.connections
        return len(self.connections) > allowed and sum(not other._is_lingering for other in self._others()) >= allowed

    def _others(self) -> Iterator[LimitedProtocol]:
        return (
            connection
            for connection in self.connections
            if isinstance(connection, LimitedProtocol) and connection is not self
        )

    def _close_an_idle_one(self) -> bool:
        idle = [connection for connection in self._others() if connection.is_quiet]
        if not idle:
            return False
        min(idle, key=lambda connection: connection._quiet_since).transport.close()
        return True

    # --- what the parser says ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self._expect_headers()

    def on_headers_complete(self) -> None:
        """A request's last header."""
        self._forget_timer()
        self._has_progressed = True
        length = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        app = self.app
        if length > self._limits.header_bytes:
            self.app = _refusal(self._too_long())
        before = self.cycle
        super().on_headers_complete()
        self.app = app
        if self.cycle is not before:
            self.cycle.transport = _AnswersTransport(self.transport, self, self.cycle)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        """A piece of it."""
        self._has_progressed = True
        if self.cycle.response_complete:
            self._ignored_bytes += len(body)
            if self._ignored_bytes > IGNORED_BYTES:
                self.transport.close()
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request's last byte."""
        self._has_progressed = True
        self._ignored_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer's last byte."""
        self._quiet_since = time.monotonic()
        if self._is_lingering:
            self.server_state.total_requests += 1
            self.flow.resume_reading()
        else:
            super().on_response_complete()

    # --- refusals ----------------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Replaces uvicorn's, which is plain text."""
        self._refuse(MalformedRequest(f"{msg} The bytes are not HTTP/1.1.", headers=_CLOSE))

    def _too_long(self) -> HeadersTooLarge:
        return HeadersTooLarge(
            f"The request's line and headers have more than {self._limits.header_bytes} bytes.", headers=_CLOSE
        )

    def _expect_headers(self) -> None:
        self._forget_timer()
        self._header_timer = self.loop.call_later(self._limits.header_seconds, self._headers_are_late)

    def _forget_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _headers_are_late(self) -> None:
        if self.is_quiet:
            self.transport.close()
        else:
            seconds = self._limits.header_seconds
            self._refuse(RequestTimeout(f"The headers did not arrive within {seconds:g} seconds.", headers=_CLOSE))

    def _refuse(self, problem: Problem) -> None:
        """Answers, if an answer can be told from what was sent before, and closes."""
        if self._is_lingering or self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()
            return
        body = problem.to_json().encode()
        headers = {
            "Content-Type": PROBLEM_MEDIA_TYPE,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            **problem.headers,
            **_CLOSE,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(STATUS_LINE[problem.status] + lines.encode() + b"\r\n" + body)
        self.linger()

    def linger(self) -> None:
        """Ends the connection from this side, and closes it when the other has had time to read what it was told."""
        if self._is_lingering:
            return
        self._is_lingering = True
        self._forget_timer()
        self.transport.write_eof()
        if len(self.connections) > 2 * self._limits.connections:
            self.transport.close()
        else:
            self.loop.call_later(LINGER_SECONDS, self.transport.close)


class _AnswersTransport:
    """The connection as a request's answer sees it, which ends it where it says that it ends."""

    def __init__(self, transport: asyncio.Transport, protocol: LimitedProtocol, cycle: RequestResponseCycle) -> None:
        self._transport = transport
        self._protocol = protocol
        self._cycle = cycle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        if self._cycle.response_complete and self._cycle.more_body and not self._transport.is_closing():
            self._protocol.linger()
        else:
            self._transport.close()


def _refusal(problem: Problem) -> ASGIApp:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await problem_response(problem, instance=None)(scope, receive, send)

    return refuse
