"""uvicorn's HTTP/1.1 protocol with limits on connections, headers and ignored bodies.

::

    no complete header within header_seconds ──> 408; a connection that has sent nothing is closed
    request line and headers, trailers or chunk extensions over header_bytes ──> 431
    more than ``connections`` connections ──> the one that has been idle for longest is closed; 503 if none is idle
    bytes that are not HTTP, CONNECT ──> 400
    Upgrade: h2c, websocket ... ──> ignored, the request is answered (RFC 9110, section 7.8)
    body bytes after the response, over IGNORED_BYTES ──> closed

These responses are problem documents, and are reported to ``on_refusal``, because the application does not see the requests.
If an earlier response on the connection is still in progress, the connection is closed instead. After a response to a
request that has not arrived as a whole, the connection stays half-closed for a second and drops what it receives: the
system resets a connection that is closed with unread bytes, and the client might never see the response.

uvicorn has no public interface for this. The class overrides or uses these internals, which is why pyproject.toml has an
upper bound for uvicorn: the parser callbacks (``on_*``), ``parser``, ``url``, ``headers``, ``client``, ``connections``,
``flow``, ``server_state`` and ``_unset_keepalive_if_required`` of ``HttpToolsProtocol``; ``transport``,
``response_complete`` and ``more_body`` of ``RequestResponseCycle``.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.http.problems import (
    PROBLEM_MEDIA_TYPE,
    HeadersTooLarge,
    MalformedRequest,
    Problem,
    RequestTimeout,
    Unavailable,
)
from service.telemetry.request_record import new_request_id

IGNORED_BYTES = 1024 * 1024
HALF_CLOSED_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """``connections`` of one server at a time; ``header_bytes`` and ``header_seconds`` of each request."""

    connections: int
    header_bytes: int
    header_seconds: float


@dataclass
class OpenConnections:
    """The connections of one server by state, so that a new one is accepted in constant time: ``idle`` in the order in
    which they became idle, and how many are ``half_closed``.
    """

    idle: OrderedDict[LimitedProtocol, None] = field(default_factory=OrderedDict)
    half_closed: int = 0


class LimitedProtocol(HttpToolsProtocol):
    """One connection. ``idle_since``: when the last response ended, on ``time.monotonic``. ``on_refusal`` is called with the
    status and the id of each request that is refused here.
    """

    def __init__(
        self,
        *,
        limits: ConnectionLimits,
        open_connections: OpenConnections,
        on_refusal: Callable[[int, str], None],
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.idle_since = time.monotonic()
        self._limits = limits
        self._open = open_connections
        self._on_refusal = on_refusal
        self._header_timer: asyncio.TimerHandle | None = None
        self._open_requests = 0  # begun to arrive and not yet answered
        self._unparsed_bytes = 0
        self._ignored_bytes = 0
        self._has_progressed = False
        self._is_half_closed = False
        self._awaits_headers = False
        self._unsent = b""
        self._is_response_begun = False

    @property
    def is_idle(self) -> bool:
        """Whether the connection is open and no request is being received or answered."""
        return not (self._open_requests or self._is_half_closed or self.transport.is_closing())

    # --- callbacks of the event loop ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuses a connection over the limit."""
        super().connection_made(transport)
        if self.client is not None:
            host, port = self.client
            self.client = host.removeprefix("::ffff:"), port  # an IPv4 client of an IPv6 socket
        # Half-closed connections have been answered and do not count.
        if len(self.connections) - self._open.half_closed > self._limits.connections and not self._close_longest_idle():
            self._refuse(Unavailable("Too many connections are open.", retry_after=1.0))
            return
        self._open.idle[self] = None
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timer."""
        self._stop_header_timer()
        self._open.idle.pop(self, None)
        self._open.half_closed -= self._is_half_closed
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parses data."""
        if self._drops_input():
            return
        self._has_progressed = False
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stopped:
            self._ignore_upgrade(data[stopped.args[0] :])
        except httptools.HttpParserError:
            self._refuse(MalformedRequest("The bytes are not HTTP/1.1."))
        if self._awaits_headers and self._header_timer is None:
            self._start_header_timer()
        # The parser buffers a header, a trailer or a chunk extension until it is complete, without a limit.
        self._unparsed_bytes = 0 if self._has_progressed else self._unparsed_bytes + len(data)
        if self._unparsed_bytes > self._limits.header_bytes:
            self._refuse(self._headers_too_large())

    def _close_longest_idle(self) -> bool:
        while self._open.idle:
            other, _ = self._open.idle.popitem(last=False)
            if other.is_idle:  # and not closing
                other.transport.close()
                return True
        return False

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Parses a request again without its ``Upgrade`` header, where the parser has stopped. ``rest``: what follows its
        headers.
        """
        if self._drops_input():
            return
        head = [self.parser.get_method(), b" ", self.url, f" HTTP/{self.parser.get_http_version()}\r\n".encode()]
        for name, value in self.headers:
            if name != b"upgrade":
                head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._open_requests -= 1
        self.data_received(b"".join([*head, b"\r\n", rest]))

    # --- callbacks of the parser -------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._open_requests += 1
        self._open.idle.pop(self, None)
        self._stop_header_timer()
        self._awaits_headers = True

    def on_headers_complete(self) -> None:
        """The end of a request's headers."""
        self._stop_header_timer()
        self._awaits_headers = False
        self._has_progressed = True
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > self._limits.header_bytes:
            self._refuse(self._headers_too_large())
        elif self.parser.get_method() == b"CONNECT":
            self._refuse(MalformedRequest("CONNECT is not supported."))
        if self._drops_input() or self.parser.should_upgrade():
            return
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:
            self.cycle.transport = _ResponseTransport(self.transport, self, self.cycle)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        """A piece of a request's body."""
        self._has_progressed = True
        if self._drops_input():
            return
        if self.cycle.response_complete:
            self._ignored_bytes += len(body)
            if self._ignored_bytes > IGNORED_BYTES:
                self.transport.close()
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        self._has_progressed = True
        self._ignored_bytes = 0
        if not (self._drops_input() or self.parser.should_upgrade()):
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """The last byte of a response."""
        self.flush()
        self._is_response_begun = False
        self._open_requests -= 1
        self.idle_since = time.monotonic()
        if self._is_half_closed:
            self.server_state.total_requests += 1
            self.flow.resume_reading()
            return
        super().on_response_complete()
        if self.is_idle:
            self._open.idle[self] = None

    def _drops_input(self) -> bool:
        """Whether a request was refused while the parser is still working on the data that held it."""
        return self._is_half_closed or self.transport.is_closing()

    # --- refusals ----------------------------------------------------------------------------------------------------

    def _headers_too_large(self) -> Problem:
        return HeadersTooLarge(f"The request's line and headers have more than {self._limits.header_bytes} bytes.")

    def _start_header_timer(self) -> None:
        self._stop_header_timer()
        self._header_timer = self.loop.call_later(self._limits.header_seconds, self._on_header_timeout)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _on_header_timeout(self) -> None:
        if self.is_idle:
            self.transport.close()
        else:
            self._refuse(RequestTimeout(f"The headers did not arrive within {self._limits.header_seconds:g} seconds."))

    def _refuse(self, problem: Problem) -> None:
        """Sends a problem and half-closes; closes without a response if an earlier response is still in progress."""
        if self._drops_input():
            return
        request_id = new_request_id()
        self._on_refusal(problem.status, request_id)
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()
            return
        body = problem.to_json(instance=request_id).encode()
        headers = {
            "Content-Type": PROBLEM_MEDIA_TYPE,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Request-ID": request_id,
            **problem.headers,
            "Connection": "close",
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(STATUS_LINE[problem.status] + lines.encode() + b"\r\n" + body)
        self.half_close()

    # --- responses ---------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Writes a part of a response; the first part, its head, together with the second if that comes at once."""
        self._unsent += data
        if self._is_response_begun:
            self.flush()
        else:
            self._is_response_begun = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Writes what is left of a response."""
        if self._unsent and not self.transport.is_closing():
            self.transport.write(self._unsent)
        self._unsent = b""

    def half_close(self) -> None:
        """Ends the connection from this side, and closes it when the client has had time to read the response."""
        if self._is_half_closed:
            return
        self._is_half_closed = True
        self._open.half_closed += 1
        self._open.idle.pop(self, None)
        self._stop_header_timer()
        self.flush()
        self.transport.write_eof()
        if len(self.connections) > 2 * self._limits.connections:
            self.transport.close()
        else:
            self.loop.call_later(HALF_CLOSED_SECONDS, self.transport.close)


class _ResponseTransport:
    """The transport of one response. ``close`` half-closes the connection if the request has not arrived as a whole."""

    def __init__(self, transport: asyncio.Transport, protocol: LimitedProtocol, cycle: RequestResponseCycle) -> None:
        self._transport = transport
        self._protocol = protocol
        self._cycle = cycle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._protocol.write(data)

    def close(self) -> None:
        if self._cycle.response_complete and self._cycle.more_body and not self._transport.is_closing():
            self._protocol.half_close()
        else:
            self._protocol.flush()
            self._transport.close()
