"""A collector that keeps the spans it is sent over OTLP/HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

PATIENCE = 60.0


@dataclass(frozen=True)
class Received:
    """A span, ids in hexadecimal. ``links`` are span ids."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    is_error: bool
    attributes: dict[str, Any]
    links: frozenset[str]
    resource: dict[str, Any]


class Collector:
    """``url`` is what ``OTEL_EXPORTER_OTLP_ENDPOINT`` is to be set to."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.spans: list[Received] = []
        self.changed = threading.Condition()

    def until(self, condition: Callable[[list[Received]], bool]) -> list[Received]:
        """All spans, once the condition is met."""
        deadline = time.monotonic() + PATIENCE
        with self.changed:
            while not condition(self.spans):
                assert self.changed.wait(deadline - time.monotonic()), [span.name for span in self.spans]
            return list(self.spans)

    def of(self, trace_id: str) -> list[Received]:
        """The spans of a trace, once its request's own has come, which is the last to be made."""
        found = self.until(lambda spans: any(span.kind == 2 and span.trace_id == trace_id for span in spans))
        return [span for span in found if span.trace_id == trace_id]

    def take(self, body: bytes) -> None:
        message = ExportTraceServiceRequest.FromString(body)
        with self.changed:
            for resource in message.resource_spans:
                told = _plain(resource.resource.attributes)
                for scope in resource.scope_spans:
                    self.spans += [_received(span, told) for span in scope.spans]
            self.changed.notify_all()


def _received(span: Any, resource: dict[str, Any]) -> Received:
    return Received(
        name=span.name,
        kind=span.kind,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        is_error=span.status.code == 2,
        attributes=_plain(span.attributes),
        links=frozenset(link.span_id.hex() for link in span.links),
        resource=resource,
    )


def _plain(attributes: Sequence[KeyValue]) -> dict[str, Any]:
    return {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that listens on a port the system chooses."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()
            collector.take(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
