"""OpenTelemetry spans of requests and of device batches, sent over OTLP/HTTP.

::

    POST /v1/encode  ├─ read ─┤├ cache ┤├─ decode ─┤  ├───── device ─────┤         in the caller's trace, or a new one
                                    ├───── queue ─────┤        │ links
    batch encode                                      ├────────┴─────────┤         a trace of its own, for many requests

The spans of a request's stages are made when the request has ended. A thread sends spans from a bounded queue; spans that
find it full are dropped. The variables ``OTEL_*`` set endpoint, headers, sampler, queue and names.

opentelemetry-instrumentation-asgi does not fit: it ends the span before outcome and stages are known, and records whole
paths, which hold codes of images.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.util.types import AttributeValue
from starlette.datastructures import Headers
from starlette.types import Scope

from service.engine.protocol import BatchReport
from service.telemetry.metrics import Metrics
from service.telemetry.observer import MetricsObserver
from service.telemetry.request_record import PROBES, RequestRecord
from service.version import VERSION

log = logging.getLogger(__name__)

FLUSH_SECONDS = 2.0  # time to send what is left when the process ends
_NAME = "titok-service"
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
_STAGE_SPANS = {"preprocess": "decode"}  # stages whose span has another name
# Offset of the wall clock from time.perf_counter, in this process.
_EPOCH_NS = time.time_ns() - time.perf_counter_ns()


def _nanoseconds(moment: float) -> int:
    return _EPOCH_NS + round(moment * 1e9)


@dataclass(frozen=True, slots=True)
class _BatchSpan:
    context: SpanContext
    start: float
    end: float
    report: BatchReport


@dataclass(slots=True)
class _EngineCall:
    """Images of one request in the engine: the request's span, when they were admitted, and the batches that held them."""

    request: SpanContext
    admitted: float
    batches: list[_BatchSpan] = field(default_factory=list)


class SpanTracer:
    """Sends traces in the background: no request waits for a trace to be sent."""

    def __init__(self) -> None:
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        if protocol not in (None, "", "http/protobuf"):
            log.warning("traces are sent as http/protobuf, not %s", protocol)
        own = Resource({"service.name": _NAME, "service.version": VERSION})
        self._resource = Resource.create().merge(own).merge(OTELResourceDetector().detect())
        self._processor = BatchSpanProcessor(OTLPSpanExporter())
        self._requests = self._tracer(None)
        # A batch is traced when a request in it is: a sampler of its own would drop batches that request spans link to.
        self._batches = self._tracer(ALWAYS_ON)
        self._current: ContextVar[_RequestTrace | None] = ContextVar("trace", default=None)

    def _tracer(self, sampler: Sampler | None) -> Tracer:
        provider = TracerProvider(sampler=sampler, resource=self._resource, shutdown_on_exit=False)
        provider.add_span_processor(self._processor)
        return provider.get_tracer(_NAME, VERSION)

    def start(self, record: RequestRecord) -> _RequestTrace | None:
        """Starts the trace of a request, in the request's own task, and sets ``record.trace_id``. None if the request is not
        traced, as health probes are not.
        """
        scope = record.scope
        if record.path in PROBES:
            return None
        headers = Headers(scope=scope)
        span = self._requests.start_span(
            _method(scope),
            propagate.extract(headers),
            SpanKind.SERVER,
            _request_attributes(scope, record.path, headers),
            start_time=_nanoseconds(record.timings.started),
        )
        record.trace_id = f"{span.get_span_context().trace_id:032x}"
        if not span.is_recording():
            return None
        trace = _RequestTrace(self._requests, span)
        self._current.set(trace)
        return trace

    def observer(self, metrics: Metrics) -> MetricsObserver:
        """An observer that traces batches, too."""
        return _BatchTracer(metrics, self._batches, self._current)

    async def close(self) -> None:
        """Sends what is left, for a bounded time; if the collector does not answer, the sending thread is abandoned."""
        flushing = threading.Thread(target=self._processor.shutdown, name="traces", daemon=True)
        flushing.start()
        await asyncio.to_thread(flushing.join, FLUSH_SECONDS)


class _RequestTrace:
    """The trace of a request in progress."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._calls: list[_EngineCall] = []

    def enter_engine(self) -> _EngineCall:
        """Records that images of the request were admitted."""
        call = _EngineCall(self._span.get_span_context(), time.perf_counter())
        self._calls.append(call)
        return call

    def end(self, record: RequestRecord) -> None:
        """Ends the request's span."""
        ended = record.timings.started + record.seconds
        for stage, since, until in record.timings.spans:
            self._add_child(_STAGE_SPANS.get(stage, stage), since, until)
        for call in self._calls:
            self._add_engine_spans(call, ended, record.code)
        if record.route != "unmatched":
            self._span.update_name(f"{_method(record.scope)} {record.route}")
        self._span.set_attributes(_response_attributes(record))
        if record.outcome == "failed":
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(_nanoseconds(ended))

    def _add_engine_spans(self, call: _EngineCall, ended: float, status: int) -> None:
        """Adds none if the cache turned out to hold the images before a device took them."""
        if call.batches:
            first, last = call.batches[0], call.batches[-1]
            self._add_child("queue", call.admitted, first.start)
            attributes: dict[str, AttributeValue] = {
                "titok.op": first.report.lane,
                "titok.device": last.report.device,
                "titok.batches": len(call.batches),
                "titok.batch.images": max(batch.report.images for batch in call.batches),
            }
            links = [Link(batch.context) for batch in call.batches]
            self._add_child("device", first.start, last.end, attributes, links)
        elif status == 504:
            self._add_child("queue", call.admitted, ended)

    def _add_child(
        self,
        name: str,
        since: float,
        until: float,
        attributes: Mapping[str, AttributeValue] | None = None,
        links: list[Link] | None = None,
    ) -> None:
        parent = set_span_in_context(self._span, Context())
        child = self._tracer.start_span(
            name, parent, attributes=attributes, links=links, start_time=_nanoseconds(since)
        )
        child.end(_nanoseconds(max(since, until)))


class _BatchTracer(MetricsObserver):
    """Traces batches besides counting them."""

    def __init__(self, metrics: Metrics, tracer: Tracer, current: ContextVar[_RequestTrace | None]) -> None:
        super().__init__(metrics)
        self._tracer = tracer
        self._current = current

    def caller(self) -> object | None:
        """The engine call of the current request, if that is traced."""
        trace = self._current.get()
        return None if trace is None else trace.enter_engine()

    def batch(self, report: BatchReport) -> None:
        """Makes the batch's span, linked to those of the requests in it."""
        super().batch(report)
        calls = [call for call in report.callers if isinstance(call, _EngineCall)]
        if not calls:
            return
        end = time.perf_counter() - report.results_seconds
        start = end - report.device_seconds
        span = self._tracer.start_span(
            f"batch {report.lane}",
            Context(),
            attributes={
                "titok.op": report.lane,
                "titok.device": report.device,
                "titok.batch.images": report.images,
            },
            links=[Link(call.request) for call in calls],
            start_time=_nanoseconds(start),
        )
        span.end(_nanoseconds(end))
        for call in calls:
            call.batches.append(_BatchSpan(span.get_span_context(), start, end, report))


def _method(scope: Scope) -> str:
    method: str = scope["method"]
    return method if method in _METHODS else "HTTP"


# Attribute names below are OpenTelemetry's stable semantic conventions for HTTP servers.


def _request_attributes(scope: Scope, path: str, headers: Headers) -> dict[str, AttributeValue]:
    """Attributes that a sampler may decide by. ``url.path`` has two parts at most: image addresses hold codes."""
    method = _method(scope)
    attributes: dict[str, AttributeValue] = {
        "http.request.method": "_OTHER" if method == "HTTP" else method,
        "url.scheme": scope["scheme"],
        "url.path": "/".join(path.split("/")[:3]),
        "network.protocol.version": scope["http_version"],
    }
    if scope.get("client"):
        attributes["client.address"] = scope["client"][0]
    address, port = scope.get("server") or (None, None)
    if address is not None and port is not None:
        attributes |= {"server.address": address, "server.port": port}
    if "user-agent" in headers:
        attributes["user_agent.original"] = headers["user-agent"][:256]
    return attributes


def _response_attributes(record: RequestRecord) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "titok.request_id": record.request_id,
        "titok.op": record.operation,
        "titok.outcome": record.outcome,
        "titok.images": record.timings.images,
        "titok.cache_hits": record.timings.cache_hits,
    }
    if record.key_name is not None:
        attributes["titok.key_name"] = record.key_name
    if record.route != "unmatched":
        attributes["http.route"] = record.route
    if record.status:
        attributes["http.response.status_code"] = record.status
    if record.outcome in ("failed", "client_gone"):
        is_status = record.outcome == "failed" and record.code >= 500
        attributes["error.type"] = str(record.code) if is_status else record.outcome
    return attributes
