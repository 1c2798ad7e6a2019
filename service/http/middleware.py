"""What every request goes through, as pure ASGI middleware: wrapping Starlette's would hide a client's disconnect.

::

    request -> RequestContext (id, trace, timing, metrics, last resort) -> BodyLimits -> routes
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections import Counter
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.problems import InternalError, problem_response, shutting_down
from service.telemetry.access_log import AccessLog
from service.telemetry.metrics import Metrics
from service.telemetry.request_record import RequestRecord
from service.telemetry.timings import RequestTimings
from service.telemetry.tracing import Tracer

__all__ = ["RequestContext"]

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_NO_SNIFFING = (b"x-content-type-options", b"nosniff")


class RequestContext:
    """Gives a request its id and stopwatch, counts it to those ``under_way`` (by operation), tells of it when it is over,
    ends its connection while ``is_draining``, and answers what nobody else did.

    ``X-Request-ID`` (1 to 128 visible ASCII characters) and ``traceparent`` (W3C Trace Context) are taken over if they
    are well-formed, and echoed; an id is made up where there is none.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        under_way: Counter[str],
        is_draining: Callable[[], bool],
        access_log: AccessLog | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._under_way = under_way
        self._is_draining = is_draining
        self._access_log = access_log
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, trace = _identify(scope)
        timings = RequestTimings()
        scope.setdefault("state", {}).update(request_id=request_id, timings=timings)
        record = RequestRecord(scope, request_id, timings, trace_id=trace[3:35] or None)
        span = self._tracer.begin(record) if self._tracer is not None else None

        async def receive_counted() -> Message:
            message = await receive()
            record.note_received(message)
            return message

        async def send_with_context(message: Message) -> None:
            record.note_sent(message)
            if message["type"] == "http.response.start":
                # A list of its own: the other one is the answer's, and answers may be sent again.
                headers = message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"server-timing", timings.header().encode()),
                    _NO_SNIFFING,
                ]
                if trace:
                    headers.append((b"traceparent", trace.encode()))
                for name, value in scope["state"].get("rate_headers", {}).items():  # what the gate had to say
                    headers.append((name.lower().encode(), value.encode()))
                if self._is_draining():
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        self._under_way[record.operation] += 1
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
            self._under_way[record.operation] -= 1
            record.seconds = timings.total
            self._tell(record)
            if span is not None:
                span.end(record)

    def _tell(self, record: RequestRecord) -> None:
        self._metrics.record_request(record.route, record.method, record.code, record.seconds)
        if self._access_log is not None:
            self._access_log.write(record)


def _identify(scope: Scope) -> tuple[str, str]:
    """A request's id and its trace context, which may be empty."""
    headers = Headers(scope=scope)
    request_id, trace = headers.get("x-request-id"), headers.get("traceparent")
    if request_id is None or not _REQUEST_ID.fullmatch(request_id):
        request_id = f"{random.getrandbits(128):032x}"
    return request_id, trace if trace is not None and _TRACEPARENT.fullmatch(trace) else ""
