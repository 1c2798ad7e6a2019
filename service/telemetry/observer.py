"""What the engine and the cache tell of their work, turned into metrics."""

from __future__ import annotations

from service.cache.protocol import BreakerState, CacheObserver
from service.engine.protocol import BatchReport
from service.telemetry.metrics import Metrics

__all__ = ["CacheMetrics", "MetricsObserver"]


class MetricsObserver:
    """See ``service.engine.EngineObserver``."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def caller(self) -> object | None:
        """Nobody in particular."""
        return None

    def batch(self, report: BatchReport) -> None:
        """The device has run a batch (of generate: one step)."""
        lane, device = report.lane, report.device
        self._metrics.batch_images.labels(lane, device).observe(report.images)
        for stage, seconds in (
            ("hand_over", report.hand_over_seconds),
            ("device", report.device_seconds),
            ("results", report.results_seconds),
        ):
            self._metrics.batch_duration.labels(lane, device, stage).observe(seconds)

    def queue_wait(self, lane: str, seconds: float) -> None:
        """An image was taken by the device."""
        self._metrics.queue_wait.labels(lane).observe(seconds)

    def rejected(self, lane: str, reason: str) -> None:
        """A request was refused at admission."""
        self._metrics.rejections.labels(lane, reason).inc()

    def abandoned(self, lane: str, stage: str) -> None:
        """An image was dropped before the device."""
        self._metrics.abandonments.labels(lane, stage).inc()


class CacheMetrics(CacheObserver):
    """See ``service.cache.CacheObserver``."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def finished(self, op: str, seconds: float) -> None:
        """A round trip to Redis succeeded."""
        self._metrics.cache_duration.labels(op).observe(seconds)

    def failed(self, op: str, reason: str) -> None:
        """A round trip, or a value, came to nothing."""
        self._metrics.cache_failures.labels(op, reason).inc()

    def breaker(self, state: BreakerState) -> None:
        """The circuit breaker has changed."""
        self._metrics.cache_breaker.set(("closed", "half-open", "open").index(state))
