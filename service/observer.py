"""What the engine tells of its work, turned into metrics."""

from __future__ import annotations

from service.metrics import Metrics

__all__ = ["MetricsObserver"]


class MetricsObserver:
    """See ``service.engine.EngineObserver``."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def batch(self, lane: str, images: int, seconds: float) -> None:
        """The device has run a batch (of generate: one step)."""
        self._metrics.batch_images.labels(lane).observe(images)
        self._metrics.batch_duration.labels(lane).observe(seconds)

    def queue_wait(self, lane: str, seconds: float) -> None:
        """An image was taken by the device."""
        self._metrics.queue_wait.labels(lane).observe(seconds)

    def rejected(self, lane: str, reason: str) -> None:
        """A request was refused at admission."""
        self._metrics.rejections.labels(lane, reason).inc()

    def abandoned(self, lane: str, stage: str) -> None:
        """An image was dropped before the device."""
        self._metrics.abandonments.labels(lane, stage).inc()
