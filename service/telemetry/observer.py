"""Observers that turn events of the engine and of the cache into metrics."""

from __future__ import annotations

from service.cache.protocol import BreakerState, CacheFailure, CacheObserver, CacheOp
from service.engine.protocol import AbandonStage, BatchReport, EngineObserver, LaneName, RejectReason
from service.telemetry.metrics import Metrics, RedisFamilies


class MetricsObserver(EngineObserver):
    """See ``service.engine.protocol.EngineObserver``."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def batch(self, report: BatchReport) -> None:
        """Records a batch (of generate: one step)."""
        lane, device = report.lane, report.device
        self._metrics.batch_images.labels(lane, device).observe(report.images)
        for stage, seconds in (
            ("hand_over", report.hand_over_seconds),
            ("device", report.device_seconds),
            ("results", report.results_seconds),
        ):
            self._metrics.batch_duration.labels(lane, device, stage).observe(seconds)

    def queue_wait(self, lane: LaneName, seconds: float) -> None:
        """Records the wait of an image that the device has started."""
        self._metrics.queue_wait.labels(lane).observe(seconds)

    def rejected(self, lane: LaneName, reason: RejectReason) -> None:
        """Counts a request that was refused at admission."""
        self._metrics.rejections.labels(lane, reason).inc()

    def abandoned(self, lane: LaneName, stage: AbandonStage) -> None:
        """Counts an image that was dropped before the device."""
        self._metrics.abandonments.labels(lane, stage).inc()


class RedisMetrics(CacheObserver):
    """See ``service.cache.protocol.CacheObserver``."""

    def __init__(self, families: RedisFamilies) -> None:
        self._families = families

    def finished(self, op: CacheOp, seconds: float) -> None:
        """Records a round trip to Redis that succeeded."""
        self._families.duration.labels(op).observe(seconds)

    def failed(self, op: CacheOp, reason: CacheFailure) -> None:
        """Counts a failed round trip or an unusable value."""
        self._families.failures.labels(op, reason).inc()

    def breaker(self, state: BreakerState) -> None:
        """Sets the state of the circuit breaker."""
        self._families.breaker.set(("closed", "half-open", "open").index(state))
