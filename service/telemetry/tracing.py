"""The interface of a tracer, and whether there is one. OpenTelemetry is imported only if the environment asks for traces."""

from __future__ import annotations

import logging
import os
from typing import Protocol

from service.telemetry.metrics import Metrics
from service.telemetry.observer import MetricsObserver
from service.telemetry.request_record import RequestRecord

log = logging.getLogger(__name__)


class RequestTrace(Protocol):
    """The trace of a request in progress."""

    def end(self, record: RequestRecord) -> None:
        """Ends the request's span."""


class Tracer(Protocol):
    """Sends traces in the background: no request waits for a trace to be sent."""

    def start(self, record: RequestRecord) -> RequestTrace | None:
        """Starts the trace of a request, in the request's own task, and sets ``record.trace_id``. None if the request is not
        traced.
        """

    def observer(self, metrics: Metrics) -> MetricsObserver:
        """An observer that traces batches, too."""

    async def close(self) -> None:
        """Sends what is left, for a bounded time."""


def open_tracer() -> Tracer | None:
    """A tracer as the environment variables ``OTEL_*`` configure it, or None if they do not ask for traces."""
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    is_off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if not endpoint or is_off or os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip() == "none":
        return None
    try:
        from service.telemetry.spans import SpanTracer
    except ImportError as error:
        log.warning(
            "no traces: an OTLP endpoint is set, but the package %s is not installed (extra 'otel'); "
            "in a checkout of the repository, run: make install",
            error.name,
        )
        return None
    return SpanTracer()
