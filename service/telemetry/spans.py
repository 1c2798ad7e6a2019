"""OpenTelemetry spans of requests and of device batches, sent over OTLP/HTTP.

::

    POST /v1/encode  ├─ read ─┤├ cache ┤├─ decode ─┤  ├───── device ─────┤         a trace, or a part of the caller's
                                    ├───── queue ─────┤        │ links
    batch encode                                      ├────────┴─────────┤         a trace of its own: many share it

A stage's spans are made when its request is over, from times that were noted meanwhile, and sent by a thread from a queue
that is bounded: what finds it full is dropped. The variables ``OTEL_*`` set endpoint, headers, sampler, queue and names.
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
from opentelemetry.semconv.attributes import (
    client_attributes,
    error_attributes,
    http_attributes,
    network_attributes,
    server_attributes,
    url_attributes,
    user_agent_attributes,
)
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.util.types import AttributeValue

from service.engine.protocol import BatchReport, EngineObserver
from service.telemetry.request_record import RequestRecord
from service.version import VERSION

__all__ = ["SpanTracer"]

log = logging.getLogger(__name__)

FLUSH_SECONDS = 2.0  # for what is left when the process ends
_NAME = "titok-service"
_CARRIERS = (b"traceparent", b"tracestate", b"baggage")
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
_PROBES = ("/livez", "/readyz", "/healthz")
# Stages of a request that bear another name in a trace.
_SPAN_NAMES = {"preprocess": "decode"}
_TIMED_OUT = 504
# What time.perf_counter is to the wall clock, in this process.
_EPOCH_NS = time.time_ns() - time.perf_counter_ns()


def _nanoseconds(moment: float) -> int:
    return _EPOCH_NS + round(moment * 1e9)


@dataclass(slots=True)
class _EngineCall:
    """A request's images in the engine: since when, and the batches they were in, each by its times and its span."""

    span: SpanContext
    admitted: float
    batches: list[tuple[float, float, BatchReport, SpanContext]] = field(default_factory=list)


class SpanTracer:
    """See ``service.telemetry.tracing.Tracer``."""

    def __init__(self) -> None:
        wanted = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        if wanted not in (None, "", "http/protobuf"):
            log.warning("traces are sent as http/protobuf, not %s", wanted)
        own = Resource({"service.name": _NAME, "service.version": VERSION})
        self._resource = Resource.create().merge(own).merge(OTELResourceDetector().detect())
        self._processor = BatchSpanProcessor(OTLPSpanExporter())
        self._requests = self._tracer(None)
        # Batches are traced when a request in them is: a sampler of their own would lose what those link to.
        self._batches = self._tracer(ALWAYS_ON)
        self._current: ContextVar[_RequestTrace | None] = ContextVar("trace", default=None)

    def _tracer(self, sampler: Sampler | None) -> Tracer:
        provider = TracerProvider(sampler=sampler, resource=self._resource, shutdown_on_exit=False)
        provider.add_span_processor(self._processor)
        return provider.get_tracer(_NAME, VERSION)

    def begin(self, record: RequestRecord) -> _RequestTrace | None:
        """See ``Tracer``. Health probes are not traced."""
        scope = record.scope
        if scope["path"] in _PROBES:
            return None
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        carrier = {name.decode(): headers[name].decode("latin-1") for name in _CARRIERS if name in headers}
        span = self._requests.start_span(
            _method(record),
            propagate.extract(carrier),
            SpanKind.SERVER,
            _request_attributes(record, headers),
            start_time=_nanoseconds(record.timings.started),
        )
        record.trace_id = f"{span.get_span_context().trace_id:032x}"
        if not span.is_recording():
            return None
        trace = _RequestTrace(self._requests, span)
        self._current.set(trace)
        return trace

    def observe(self, observer: EngineObserver) -> EngineObserver:
        """See ``Tracer``."""
        return _BatchTracer(observer, self._batches, self._current)

    async def close(self) -> None:
        """See ``Tracer``. A collector that does not answer is left behind with the thread that waits for it."""
        flushing = threading.Thread(target=self._processor.shutdown, name="traces", daemon=True)
        flushing.start()
        await asyncio.to_thread(flushing.join, FLUSH_SECONDS)


class _RequestTrace:
    """See ``service.telemetry.tracing.RequestTrace``."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._calls: list[_EngineCall] = []

    def enter_engine(self) -> _EngineCall:
        """Images of the request were admitted."""
        call = _EngineCall(self._span.get_span_context(), time.perf_counter())
        self._calls.append(call)
        return call

    def end(self, record: RequestRecord) -> None:
        """See ``RequestTrace``."""
        timings, span = record.timings, self._span
        ended = timings.started + record.seconds
        for stage, since, until in timings.spans:
            self._child(_SPAN_NAMES.get(stage, stage), since, until)
        for call in self._calls:
            self._tell_of_engine(call, ended, record.code)
        method, route, status = _method(record), record.route, record.code
        if route != "unmatched":
            span.update_name(f"{method} {route}")
            span.set_attribute(http_attributes.HTTP_ROUTE, route)
        if record.status:
            span.set_attribute(http_attributes.HTTP_RESPONSE_STATUS_CODE, status)
        if record.outcome == "failed":
            span.set_status(Status(StatusCode.ERROR))
            span.set_attribute(error_attributes.ERROR_TYPE, str(status) if status >= 500 else "failed")
        elif record.outcome == "client_gone":
            span.set_attribute(error_attributes.ERROR_TYPE, "client_gone")
        span.set_attributes(
            {
                "titok.request_id": record.request_id,
                "titok.op": record.operation,
                "titok.outcome": record.outcome,
                "titok.images": timings.images,
                "titok.cache_hits": timings.cache_hits,
            }
        )
        if record.key_name is not None:
            span.set_attribute("titok.key_name", record.key_name)
        span.end(_nanoseconds(ended))

    def _tell_of_engine(self, call: _EngineCall, ended: float, status: int) -> None:
        """Nothing, where the images turned out to be known before a device took them."""
        if call.batches:
            begun, until = call.batches[0][0], call.batches[-1][1]
            reports = [report for _, _, report, _ in call.batches]
            self._child("queue", call.admitted, begun)
            self._child(
                "device",
                begun,
                until,
                {
                    "titok.op": reports[0].lane,
                    "titok.device": reports[-1].device,
                    "titok.batches": len(reports),
                    "titok.batch.images": max(report.images for report in reports),
                },
                [Link(context) for _, _, _, context in call.batches],
            )
        elif status == _TIMED_OUT:
            self._child("queue", call.admitted, ended)

    def _child(
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


class _BatchTracer:
    """See ``service.engine.EngineObserver``."""

    def __init__(self, observer: EngineObserver, tracer: Tracer, current: ContextVar[_RequestTrace | None]) -> None:
        self._observer = observer
        self._tracer = tracer
        self._current = current
        self.queue_wait = observer.queue_wait
        self.rejected = observer.rejected
        self.abandoned = observer.abandoned

    def caller(self) -> object | None:
        """The trace of the request that is being answered."""
        trace = self._current.get()
        return None if trace is None else trace.enter_engine()

    def batch(self, report: BatchReport) -> None:
        """Makes its span, linked to those of the requests in it."""
        self._observer.batch(report)
        calls = [call for call in report.callers if isinstance(call, _EngineCall)]
        if not calls:
            return
        until = time.perf_counter() - report.results_seconds
        since = until - report.device_seconds
        span = self._tracer.start_span(
            f"batch {report.lane}",
            Context(),
            attributes={
                "titok.op": report.lane,
                "titok.device": report.device,
                "titok.batch.images": report.images,
            },
            links=[Link(call.span) for call in calls],
            start_time=_nanoseconds(since),
        )
        span.end(_nanoseconds(until))
        for call in calls:
            call.batches.append((since, until, report, span.get_span_context()))


def _method(record: RequestRecord) -> str:
    method: str = record.scope["method"]
    return method if method in _METHODS else "HTTP"


def _request_attributes(record: RequestRecord, headers: Mapping[bytes, bytes]) -> dict[str, AttributeValue]:
    """What a sampler may decide by. An image's address is its code, so that paths are told by their first parts alone."""
    scope = record.scope
    method = _method(record)
    attributes: dict[str, AttributeValue] = {
        http_attributes.HTTP_REQUEST_METHOD: "_OTHER" if method == "HTTP" else method,
        url_attributes.URL_SCHEME: scope["scheme"],
        url_attributes.URL_PATH: "/".join(scope["path"].split("/")[:3]),
        network_attributes.NETWORK_PROTOCOL_VERSION: scope["http_version"],
    }
    if scope.get("client"):
        attributes[client_attributes.CLIENT_ADDRESS] = scope["client"][0]
    address, port = scope.get("server") or (None, None)
    if address is not None and port is not None:
        attributes |= {server_attributes.SERVER_ADDRESS: address, server_attributes.SERVER_PORT: port}
    if b"user-agent" in headers:
        attributes[user_agent_attributes.USER_AGENT_ORIGINAL] = headers[b"user-agent"].decode("latin-1")[:256]
    return attributes
