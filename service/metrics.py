"""What Prometheus is told. Names carry the prefix ``titok_`` and base units; labels have few, known values."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

__all__ = ["METRICS_MEDIA_TYPE", "Metrics"]

METRICS_MEDIA_TYPE = CONTENT_TYPE_LATEST

# From half a millisecond, a cache hit, to half a minute, the deadline.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The instruments of one application, in a registry of their own; also the engine's observer."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "titok_http_requests", "Requests answered.", ("route", "method", "code"), registry=registry
        )
        self.duration = Histogram(
            "titok_http_request_duration_seconds",
            "From the request's first byte to the answer's last.",
            ("route", "method"),
            buckets=SECONDS,
            registry=registry,
        )
        self.in_progress = Gauge("titok_requests_in_progress", "Requests under way.", registry=registry)
        self.preprocess = Histogram(
            "titok_preprocess_duration_seconds",
            "Decoding, resizing and cropping one image.",
            ("format",),
            buckets=SECONDS,
            registry=registry,
        )
        self.queue_images = Gauge("titok_queue_images", "Images that wait in a lane.", ("op",), registry=registry)
        self.queue_wait = Histogram(
            "titok_queue_wait_seconds", "From admission to the device.", ("op",), buckets=SECONDS, registry=registry
        )
        self.batch_images = Histogram(
            "titok_batch_images", "Images of a device batch.", ("op",), buckets=IMAGES, registry=registry
        )
        self.batch_duration = Histogram(
            "titok_batch_duration_seconds", "Device time of a batch.", ("op",), buckets=SECONDS, registry=registry
        )
        self.rejections = Counter("titok_rejected", "Images refused at admission.", ("op", "reason"), registry=registry)
        self.abandonments = Counter(
            "titok_abandoned",
            "Images dropped before the device: late, or nobody waits.",
            ("op", "stage"),
            registry=registry,
        )
        self.cache_requests = Counter(
            "titok_cache_requests", "Images looked up in the cache of codes.", ("result",), registry=registry
        )
        self.ready = Gauge("titok_worker_up", "Whether a device can run a batch.", ("device",), registry=registry)
        self.build = Info("titok_build", "What runs here.", registry=registry)

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)
