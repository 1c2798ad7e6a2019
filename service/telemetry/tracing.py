"""Whether requests are traced: OpenTelemetry is imported only if the environment asks for traces."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from service.telemetry.spans import SpanTracer

log = logging.getLogger(__name__)


Tracer: TypeAlias = "SpanTracer"


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
