"""Whether requests are traced, and what a tracer is. OpenTelemetry is imported only where it is asked for."""

from __future__ import annotations

import logging
import os
from typing import Protocol

from service.engine.protocol import EngineObserver
from service.telemetry.request_record import RequestRecord

__all__ = ["RequestTrace", "Tracer", "open_tracer"]

log = logging.getLogger(__name__)


class RequestTrace(Protocol):
    """The trace of a request under way."""

    def end(self, record: RequestRecord) -> None:
        """The request is over."""


class Tracer(Protocol):
    """Makes traces in the background: a request never waits for one to be sent."""

    def begin(self, record: RequestRecord) -> RequestTrace | None:
        """A request has begun, in its own task; None if it is not to be traced. Gives the record its trace id."""

    def observe(self, observer: EngineObserver) -> EngineObserver:
        """An observer that tells ``observer`` all it hears, and traces batches."""

    async def close(self) -> None:
        """Sends what is left, for a bounded time."""


def open_tracer() -> Tracer | None:
    """A tracer as the environment describes it (``OTEL_*``), or None where it asks for no traces."""
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    is_off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if not endpoint or is_off or os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip() == "none":
        return None
    try:
        from service.telemetry.spans import SpanTracer
    except ImportError as error:
        log.warning(
            "no traces: an OTLP endpoint is set, but %s is missing (pip install 'titok-service[otel]')", error.name
        )
        return None
    return SpanTracer()
