"""Prometheus metrics. Names have the prefix ``titok_`` and base units; labels take few, known values.

Series exist at 0 before their first event: ``rate()`` does not see the event that a series begins with.

Several front ends count in files of one folder (``metric_files.py``); the supervisor exposes the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from itertools import product
from typing import Literal, TypeVar, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from service.cache.protocol import CacheFailure, CacheOp
from service.engine.protocol import AbandonStage, LaneName, RejectReason

# From half a millisecond, a cache hit, to half a minute, the deadline.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LANES: tuple[LaneName, ...] = get_args(LaneName)
_BATCH_STAGES = ("hand_over", "device", "results")
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

M = TypeVar("M", bound=MetricWrapperBase)


def _with_series(metric: M, *values: Iterable[str]) -> M:
    """The metric, after the series of all combinations of its label values were created."""
    for labels in product(*values):
        metric.labels(*labels)
    return metric


class RedisFamilies:
    """The metrics of what Redis is used for: ``cache`` or ``rates``."""

    def __init__(self, registry: CollectorRegistry, use: str, ops: tuple[CacheOp, ...]) -> None:
        self.duration = _with_series(
            Histogram(
                f"titok_{use}_duration_seconds", "Round trips to Redis.", ("op",), registry=registry, buckets=SECONDS
            ),
            ops,
        )
        self.failures = _with_series(
            Counter(
                f"titok_{use}_failures",
                "Failed round trips to Redis, and unusable values.",
                ("op", "reason"),
                registry=registry,
            ),
            ops,
            get_args(CacheFailure),
        )
        self.breaker = Gauge(
            f"titok_{use}_breaker",
            "Circuit breaker of Redis: 0 closed, 1 half-open, 2 open.",
            registry=registry,
            multiprocess_mode="livemax",
        )


class Metrics:
    """The metrics of one application, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        counter = partial(Counter, registry=registry)
        histogram = partial(Histogram, registry=registry)
        duration = partial(histogram, buckets=SECONDS)
        self._requests = counter("titok_http_requests", "Requests answered.", ("route", "method", "code"))
        self._request_duration = duration(
            "titok_http_request_duration_seconds",
            "From the request's first byte to the response's last.",
            ("route", "method"),
        )
        # ``labels`` checks the values in every call.
        self._requests_of = cache(self._requests.labels)
        self._request_duration_of = cache(self._request_duration.labels)
        self._add_engine_families(counter, histogram)
        self._add_image_families(counter, histogram)
        self.cache_redis = RedisFamilies(registry, "cache", ("get", "claim", "put", "probe"))
        self.rates_redis = RedisFamilies(registry, "rates", ("consume", "probe"))

    def _add_image_families(self, counter: Callable[..., Counter], histogram: Callable[..., Histogram]) -> None:
        """Families of images and codes outside the engine."""
        duration = partial(histogram, buckets=SECONDS)
        self.preprocess = duration(
            "titok_preprocess_duration_seconds", "Decoding, resizing and cropping one image.", ("format",)
        )
        self.render = duration(
            "titok_render_duration_seconds", "Scaling and encoding one image of a response.", ("format",)
        )
        self.cache_requests = _with_series(
            counter("titok_cache_requests", "Images looked up in the cache of codes.", ("result",)),
            ("hit", "pixels", "lookup", "shared", "miss"),
        )
        self._code_tokens = _with_series(
            histogram(
                "titok_code_tokens",
                "Tokens of a code that is decoded, or encoded at a requested length.",
                ("op",),
                buckets=TOKENS,
            ),
            ("encode", "decode"),
        )
        self.rendered_image_requests = _with_series(
            counter("titok_picture_requests", "Images requested by their address, by cache result.", ("result",)),
            ("hit", "miss"),
        )

    def _add_engine_families(self, counter: Callable[..., Counter], histogram: Callable[..., Histogram]) -> None:
        """Families of queues and batches."""
        duration = partial(histogram, buckets=SECONDS)
        self.queue_wait = _with_series(
            duration("titok_queue_wait_seconds", "From admission to the device.", ("op",)), _LANES
        )
        self.batch_images = histogram(
            "titok_batch_images", "Images of a device batch.", ("op", "device"), buckets=IMAGES
        )
        self.batch_duration = duration(
            "titok_batch_duration_seconds",
            "Batches by stage: handed over to the worker, on the device, results copied to their requests.",
            ("op", "device", "stage"),
        )
        self.rejections = _with_series(
            counter("titok_rejected", "Images refused at admission.", ("op", "reason")), _LANES, get_args(RejectReason)
        )
        self.abandonments = _with_series(
            counter("titok_abandoned", "Images dropped unfinished: expired or cancelled.", ("op", "stage")),
            _LANES,
            get_args(AbandonStage),
        )

    def expect_requests(self, route: str, methods: Iterable[str], codes: Iterable[int]) -> None:
        """Creates the series of a route."""
        _with_series(self._requests, (route,), methods, map(str, codes))
        _with_series(self._request_duration, (route,), methods)

    def expect_device(self, device: str) -> None:
        """Creates the series of a device."""
        _with_series(self.batch_images, _LANES, (device,))
        _with_series(self.batch_duration, _LANES, (device,), _BATCH_STAGES)

    def count_tokens(self, op: Literal["encode", "decode"], lengths: Iterable[int]) -> None:
        """Counts codes by their number of tokens."""
        for length in lengths:
            self._code_tokens.labels(op).observe(length)

    def record_refusal(self, route: str, method: str, code: int) -> None:
        """Counts a request that was refused before the application saw it; it has no duration."""
        self._requests.labels(route, method, code).inc()

    def record_request(self, route: str, method: str, code: int, seconds: float) -> None:
        """Counts a request that has ended."""
        self._requests_of(route, method, code).inc()
        self._request_duration_of(route, method).observe(seconds)
