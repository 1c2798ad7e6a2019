"""The outermost middleware: request ids, response headers, metrics, access log, traces and unhandled exceptions; and HEAD.

All is plain ASGI: Starlette's ``BaseHTTPMiddleware`` would hide a client's disconnect from the routes.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.problems import InternalError, problem_response, shutting_down
from service.telemetry.access_log import log_request
from service.telemetry.metrics import Metrics
from service.telemetry.request_record import RequestRecord, new_request_id
from service.telemetry.timings import RequestTimings
from service.telemetry.tracing import Tracer

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_NO_SNIFFING = ("x-content-type-options", "nosniff")
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def record_refusal(metrics: Metrics, access_log: bool, status: int, request_id: str) -> None:
    """Counts and logs a request that the server has refused before the application saw it."""
    record = RequestRecord({"path": "", "method": "", "state": {}}, request_id, RequestTimings())
    record.status, record.is_complete = status, True
    metrics.record_refusal(record.route, record.method, status)
    if access_log:
        log_request(record)


class RequestContext:
    """Joins repeated header lines, puts ``request_id`` and ``timings`` into the request's state, counts requests
    ``in_flight`` by operation, and reports each one when it has ended. While ``is_draining``, every answer has
    ``Connection: close``.

    ``X-Request-ID`` (1 to 128 visible ASCII characters) and ``traceparent`` (W3C Trace Context) are echoed if they are
    well-formed. A request without a valid id gets a new one.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        in_flight: Counter[str],
        is_draining: Callable[[], bool],
        *,
        access_log: bool = False,
        tracer: Tracer | None = None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._in_flight = in_flight
        self._is_draining = is_draining
        self._access_log = access_log
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["headers"] = _join_lines(scope["headers"])
        headers = Headers(scope=scope)
        request_id, traceparent = headers.get("x-request-id", ""), headers.get("traceparent", "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = new_request_id()
        if not _TRACEPARENT.fullmatch(traceparent):
            traceparent = ""
        timings = RequestTimings()
        scope.setdefault("state", {}).update(request_id=request_id, timings=timings)
        record = RequestRecord(scope, request_id, timings, traceparent)
        trace = self._tracer.start(record) if self._tracer is not None else None
        self._in_flight[record.operation] += 1
        try:
            await self._respond(record, receive, send)
        finally:
            self._in_flight[record.operation] -= 1
            record.seconds = timings.total
            self._metrics.record_request(record.route, record.method, record.code, record.seconds)
            if self._access_log:
                log_request(record)
            if trace is not None:
                trace.end(record)

    async def _respond(self, record: RequestRecord, receive: Receive, send: Send) -> None:
        async def receive_counted() -> Message:
            message = await receive()
            record.count_received(message)
            return message

        async def send_counted(message: Message) -> None:
            record.count_sent(message)
            if message["type"] == "http.response.start":
                self._add_headers(message, record)
            await send(message)

        try:
            await self._app(record.scope, receive_counted, send_counted)
        except asyncio.CancelledError:
            # The server cancels a request only when the time to drain is over.
            if not record.status:
                response = problem_response(shutting_down(), instance=record.request_id)
                await response(record.scope, receive, send_counted)
            raise
        except Exception:
            log.exception("request %s failed", record.request_id, extra={"request_id": record.request_id})
            if record.status:
                record.scope["state"]["has_failed"] = True
                raise  # the status has been sent: only closing the connection can show the error
            response = problem_response(InternalError(), instance=record.request_id)
            await response(record.scope, receive, send_counted)

    def _add_headers(self, start: Message, record: RequestRecord) -> None:
        added = [("x-request-id", record.request_id), ("server-timing", record.timings.header()), _NO_SNIFFING]
        if record.traceparent:
            added.append(("traceparent", record.traceparent))
        added += record.scope["state"].get("rate_headers", {}).items()  # set by api/access
        # A new list: the other one belongs to a response that may be sent again.
        start["headers"] = [*start["headers"], *[(name.lower().encode(), value.encode()) for name, value in added]]
        if self._is_draining():
            MutableHeaders(scope=start)["Connection"] = "close"


class HeadAsGet:
    """Runs a HEAD request as GET; the server sends no body. The route is told to the outer middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope.get("method") != "HEAD":
            await self._app(scope, receive, send)
            return
        as_get = {**scope, "method": "GET"}
        try:
            await self._app(as_get, receive, send)
        finally:
            scope["route"] = as_get.get("route")


def _join_lines(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Header lines with the values of equal names joined by commas (RFC 9110, section 5.3)."""
    joined: dict[bytes, bytes] = {}
    for name, value in headers:
        joined[name] = joined[name] + b", " + value if name in joined else value
    return list(joined.items())
