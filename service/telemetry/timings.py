"""Timings of one request by named stage, for ``Server-Timing``, the access log and traces."""

from __future__ import annotations

import time

from service.engine.protocol import Timing


class RequestTimings:
    """``seconds``: by stage, in the order of first use. ``spans``: each interval that ``measure`` timed, as (stage, start,
    end). ``started``, ``start`` and ``end`` are values of ``time.perf_counter``. ``images``: number of images that the
    request is about; ``cache_hits``: number of those that the cache held.
    """

    __slots__ = ("cache_hits", "images", "seconds", "spans", "started")

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.spans: list[tuple[str, float, float]] = []
        self.images = 0
        self.cache_hits = 0

    def measure(self, stage: str) -> Measurement:
        """Adds the duration of a ``with`` block to a stage."""
        return Measurement(self, stage)

    def add(self, stage: str, seconds: float) -> None:
        """Adds time that was measured elsewhere."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def add_engine(self, timing: Timing) -> None:
        """Adds the time that images waited in a queue and ran on a device."""
        self.add("queue", timing.queue_seconds)
        self.add("device", timing.device_seconds)

    def record_image_count(self, count: int, *, cache_hits: int = 0) -> None:
        """Records the number of images of a part of the request. All parts are about the same images: the largest counts."""
        self.images = max(self.images, count)
        self.cache_hits = max(self.cache_hits, cache_hits)

    @property
    def total(self) -> float:
        """Seconds since the request began."""
        return time.perf_counter() - self.started

    def header(self) -> str:
        """The value of ``Server-Timing``, in milliseconds."""
        entries = [*self.seconds.items(), ("total", self.total)]
        return ", ".join([f"{stage};dur={seconds * 1000:.2f}" for stage, seconds in entries])


class Measurement:
    """A stage in progress, as a context manager."""

    __slots__ = ("_stage", "_started", "_timings")

    def __init__(self, timings: RequestTimings, stage: str) -> None:
        self._timings = timings
        self._stage = stage

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        ended = time.perf_counter()
        self._timings.add(self._stage, ended - self._started)
        self._timings.spans.append((self._stage, self._started, ended))
