"""The batch limit of a lane while it serves: halved when images do not fit into memory, and slowly doubled again."""

from __future__ import annotations

import time
from collections.abc import Callable

_FIRST_PAUSE, _LONGEST_PAUSE = 60.0, 3600.0


class AdaptiveLimit:
    """``current`` images run at once, at most ``measured``, the limit found at start-up.

    Memory that other processes take may be free again later: the limit is doubled after a minute without a failure, as soon
    as a full part has fitted. Each failure within an hour of the last one doubles the pause, up to an hour.
    """

    def __init__(self, measured: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.measured = self.current = measured
        self._clock = clock
        self._pause = 0.0
        self._failed = self._changed = float("-inf")

    def shrink(self, images: int) -> None:
        """Records that so many images in flight did not fit."""
        now = self._clock()
        recent = now - self._failed < _LONGEST_PAUSE
        self._pause = min(2 * self._pause, _LONGEST_PAUSE) if recent else _FIRST_PAUSE
        self._failed = self._changed = now
        self.current = max(1, min(images, self.current) // 2)

    def grow(self, images: int) -> None:
        """Records that a part of so many images fitted."""
        if self.current < self.measured and images >= self.current and self._clock() - self._changed >= self._pause:
            self.current = min(2 * self.current, self.measured)
            self._changed = self._clock()
