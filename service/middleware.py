"""What every request goes through, as pure ASGI middleware: wrapping Starlette's would hide a client's disconnect.

::

    request -> RequestContext (id, trace, timing, metrics, last resort) -> BodyLimit -> routes
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Callable, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access_log import AccessLog
from service.metrics import Metrics
from service.problems import (
    PROBLEM_MEDIA_TYPE,
    ContentTooLarge,
    InternalError,
    Problem,
    ProblemDetail,
    shutting_down,
)
from service.request_record import RequestRecord
from service.stages import Stages
from service.tracing import Tracer

__all__ = ["BodyLimit", "RequestContext", "announced_length", "problem_response", "refuse"]

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_SECURITY_HEADERS: Mapping[str, str] = {"X-Content-Type-Options": "nosniff"}


def problem_response(problem: Problem, *, instance: str | None) -> Response:
    """The answer that a problem becomes."""
    body = problem.to_json(instance=instance)
    return Response(body, problem.status, {"Cache-Control": "no-store", **problem.headers}, PROBLEM_MEDIA_TYPE)


def announced_length(scope: Scope) -> int:
    """Bytes of the body by its Content-Length; 0 where there is none that can be read."""
    announced = Headers(scope=scope).get("content-length", "")
    return int(announced) if announced.isascii() and announced.isdigit() else 0


async def refuse(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers a request with a problem, before the application has seen it."""
    await problem_response(problem, instance=scope.get("state", {}).get("request_id"))(scope, receive, send)


class RequestContext:
    """Gives a request its id and stopwatch, tells of it when it is over, ends its connection while ``is_draining``, and
    answers what nobody else did.

    ``X-Request-ID`` (1 to 128 visible ASCII characters) and ``traceparent`` (W3C Trace Context) are taken over if they
    are well-formed, and echoed; an id is made up where there is none.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        is_draining: Callable[[], bool],
        access_log: AccessLog | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._is_draining = is_draining
        self._access_log = access_log
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
        trace = headers.get("traceparent", "")
        trace = trace if _TRACEPARENT.fullmatch(trace) else ""
        stages = Stages()
        scope.setdefault("state", {}).update(request_id=request_id, stages=stages)
        record = RequestRecord(scope, request_id, stages, trace_id=trace[3:35] or None)
        span = self._tracer.begin(record) if self._tracer is not None else None

        async def receive_counted() -> Message:
            message = await receive()
            record.note_received(message)
            return message

        async def send_with_context(message: Message) -> None:
            record.note_sent(message)
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                answer["X-Request-ID"] = request_id
                answer["Server-Timing"] = stages.header()
                if trace:
                    answer["traceparent"] = trace
                for name, value in _SECURITY_HEADERS.items():
                    answer[name] = value
                for name, value in scope["state"].get("rate_headers", {}).items():  # what the gate had to say
                    answer[name] = value
                if self._is_draining():
                    answer["Connection"] = "close"
            await send(message)

        in_progress = self._metrics.in_progress.labels(record.operation)
        in_progress.inc()
        try:
            await self._app(scope, receive_counted, send_with_context)
        except asyncio.CancelledError:
            # The server gives up on a request only when the time to drain is over.
            if not record.status:
                await problem_response(shutting_down(), instance=request_id)(scope, receive, send_with_context)
            raise
        except Exception:
            log.exception("request %s failed", request_id, extra={"request_id": request_id})
            if record.status:
                scope["state"]["has_failed"] = True
                raise  # half an answer is out; closing the connection is the only way to say so
            await problem_response(InternalError(), instance=request_id)(scope, receive, send_with_context)
        finally:
            in_progress.dec()
            record.seconds = stages.total
            self._tell(record)
            if span is not None:
                span.end(record)

    def _tell(self, record: RequestRecord) -> None:
        route, method = record.route, record.method
        self._metrics.requests.labels(route, method, record.code).inc()
        self._metrics.duration.labels(route, method).observe(record.seconds)
        if self._access_log is not None:
            self._access_log.write(record)


class BodyLimit:
    """Refuses a body longer than ``max_bytes``, by its Content-Length or as soon as it is too long."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = announced_length(scope)
        if announced > self._max_bytes:
            await refuse(self._too_long(announced), scope, receive, send)
            return
        received = 0

        async def limited_receive() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self._max_bytes:
                    raise self._too_long(received)
            return message

        await self._app(scope, limited_receive, send)

    def _too_long(self, length: int) -> ContentTooLarge:
        return ContentTooLarge(
            f"The body has {length} bytes or more; at most {self._max_bytes} are taken.",
            errors=[
                ProblemDetail(
                    pointer="body", detail="body too long", value=length, expected=f"at most {self._max_bytes} bytes"
                )
            ],
            headers={"Connection": "close"},
        )
