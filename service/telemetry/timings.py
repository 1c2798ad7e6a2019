"""Where a request's time went and what it was spent on: named stages, told to the client in ``Server-Timing``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager

__all__ = ["Stages"]


class Stages:
    """Seconds by stage, in the order of first use. ``images``: how many the request is about; ``cache_hits``: how many of
    them were known. ``spans``: each stretch of time that was measured here, as stage, beginning and end on
    ``time.perf_counter``.
    """

    __slots__ = ("_seconds", "_started", "cache_hits", "images", "spans")

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self.images = 0
        self.cache_hits = 0
        self.spans: list[tuple[str, float, float]] = []

    def measure(self, stage: str) -> AbstractContextManager[None]:
        """Adds the time of the block to a stage."""
        return _Measured(self, stage)

    def add(self, stage: str, seconds: float) -> None:
        """Adds time that was measured elsewhere."""
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds

    def note_images(self, count: int, *, cache_hits: int = 0) -> None:
        """Notes images that a part of the request was about; the parts of one request are about the same images."""
        self.images = max(self.images, count)
        self.cache_hits = max(self.cache_hits, cache_hits)

    @property
    def seconds(self) -> Mapping[str, float]:
        """By stage."""
        return self._seconds

    @property
    def started(self) -> float:
        """When the request began, on ``time.perf_counter``."""
        return self._started

    @property
    def total(self) -> float:
        """Seconds since the request began."""
        return time.perf_counter() - self._started

    def header(self) -> str:
        """The value of ``Server-Timing``, in milliseconds."""
        entries = [*self._seconds.items(), ("total", self.total)]
        return ", ".join([f"{stage};dur={seconds * 1000:.2f}" for stage, seconds in entries])


class _Measured(AbstractContextManager[None]):
    __slots__ = ("_stage", "_stages", "_started")

    def __init__(self, stages: Stages, stage: str) -> None:
        self._stages, self._stage = stages, stage

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        ended = time.perf_counter()
        self._stages.add(self._stage, ended - self._started)
        self._stages.spans.append((self._stage, self._started, ended))
