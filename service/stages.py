"""Where a request's time went: named stages, told to the client in ``Server-Timing``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Stages"]


class Stages:
    """Seconds by stage, in the order of first use."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Adds the time of the block to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - started)

    def add(self, stage: str, seconds: float) -> None:
        """Adds time that was measured elsewhere."""
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds

    @property
    def total(self) -> float:
        """Seconds since the request began."""
        return time.perf_counter() - self._started

    def header(self) -> str:
        """The value of ``Server-Timing``, in milliseconds."""
        entries = [*self._seconds.items(), ("total", self.total)]
        return ", ".join(f"{stage};dur={seconds * 1000:.2f}" for stage, seconds in entries)
