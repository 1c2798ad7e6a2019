"""What Prometheus is told of requests. Names carry the prefix ``titok_`` and base units; labels have few, known values.

Several front ends count in files of one folder, which the supervisor adds up (``share_metrics``).
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, multiprocess, values

__all__ = ["Metrics", "forget_gauges", "share_metrics", "shared_metrics"]

# From half a millisecond, a cache hit, to half a minute, the deadline.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SERIES = 1024
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The instruments of one application, in a registry of their own; also the engine's observer."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        requests = Counter("titok_http_requests", "Requests answered.", ("route", "method", "code"), registry=registry)
        duration = Histogram(
            "titok_http_request_duration_seconds",
            "From the request's first byte to the answer's last.",
            ("route", "method"),
            buckets=SECONDS,
            registry=registry,
        )
        self.preprocess = Histogram(
            "titok_preprocess_duration_seconds",
            "Decoding, resizing and cropping one image.",
            ("format",),
            buckets=SECONDS,
            registry=registry,
        )
        self.render = Histogram(
            "titok_render_duration_seconds",
            "Scaling and encoding one image of an answer.",
            ("format",),
            buckets=SECONDS,
            registry=registry,
        )
        self.queue_wait = Histogram(
            "titok_queue_wait_seconds", "From admission to the device.", ("op",), buckets=SECONDS, registry=registry
        )
        self.batch_images = Histogram(
            "titok_batch_images", "Images of a device batch.", ("op", "device"), buckets=IMAGES, registry=registry
        )
        self.batch_duration = Histogram(
            "titok_batch_duration_seconds",
            "A batch by stage: handed over to the worker, at the device, its results copied to their requests.",
            ("op", "device", "stage"),
            buckets=SECONDS,
            registry=registry,
        )
        self.rejections = Counter("titok_rejected", "Images refused at admission.", ("op", "reason"), registry=registry)
        self.abandonments = Counter(
            "titok_abandoned",
            "Images dropped before the device: late, or nobody waits.",
            ("op", "stage"),
            registry=registry,
        )
        cache_requests = Counter(
            "titok_cache_requests", "Images looked up in the cache of codes.", ("result",), registry=registry
        )
        self.picture_requests = Counter(
            "titok_picture_requests",
            "Images asked for by their address, by cache result.",
            ("result",),
            registry=registry,
        )
        self.cache_duration = Histogram(
            "titok_cache_duration_seconds", "Round trips to Redis.", ("op",), buckets=SECONDS, registry=registry
        )
        self.cache_failures = Counter(
            "titok_cache_failures", "Round trips and values that came to nothing.", ("op", "reason"), registry=registry
        )
        self.cache_breaker = Gauge(
            "titok_cache_breaker",
            "Circuit breaker of Redis: 0 closed, 1 half-open, 2 open.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        # Those that every request touches: finding a series by its labels costs more than counting in it.
        self.cache_result = lru_cache(_SERIES)(cache_requests.labels)
        self._requests_of = lru_cache(_SERIES)(requests.labels)
        self._duration_of = lru_cache(_SERIES)(duration.labels)

    def note_request(self, route: str, method: str, code: int, seconds: float) -> None:
        """A request has ended."""
        self._requests_of(route, method, code).inc()
        self._duration_of(route, method).observe(seconds)


def share_metrics(folder: Path, place: str) -> None:
    """Makes the instruments of this process count in files of a folder, from now on.

    ``place`` is that of a process: the one that takes a dead one's place goes on counting in its files, so that nothing
    is counted down and nothing is left behind.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    values.ValueClass = values.MultiProcessValue(lambda: place)  # type: ignore[no-untyped-call]


def forget_gauges(folder: Path, place: str) -> None:
    """Drops what a dead process was at; what it has counted stays."""
    multiprocess.mark_process_dead(place, str(folder))  # type: ignore[no-untyped-call]


def shared_metrics(folder: Path) -> CollectorRegistry:
    """The sum of what is in the folder."""
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    return registry
