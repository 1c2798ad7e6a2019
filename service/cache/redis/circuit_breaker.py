"""A circuit breaker: after several failures in a row calls stop until a probe succeeds.

::

    closed ── failures in a row ──> open ── after a pause ──> half-open ── the probe succeeds ──> closed
                                     ^──────── the probe fails ──────┘
"""

from __future__ import annotations

import time
from collections.abc import Callable

from service.cache.protocol import BreakerState


class CircuitBreaker:
    """Opens after ``threshold`` failures in a row, then wants one probe every ``pause`` seconds until one succeeds."""

    def __init__(
        self,
        *,
        threshold: int = 3,
        pause: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[BreakerState], None] = lambda _: None,
    ) -> None:
        self.state: BreakerState = "closed"
        self._threshold = threshold
        self._pause = pause
        self._clock = clock
        self._on_change = on_change
        self._failures = 0
        self._opened = 0.0

    def wants_probe(self) -> bool:
        """Whether the pause is over. If so the state becomes half-open, and the caller must send the probe."""
        if self.state != "open" or self._clock() - self._opened < self._pause:
            return False
        self._set_state("half-open")
        return True

    def record_success(self) -> None:
        """A call succeeded. Ignored while open: that call started before the breaker opened."""
        if self.state != "open":
            self._failures = 0
            self._set_state("closed")

    def record_failure(self) -> None:
        """A call failed."""
        self._failures += 1
        if self.state == "half-open" or self._failures >= self._threshold:
            self._opened = self._clock()
            self._set_state("open")

    def _set_state(self, state: BreakerState) -> None:
        if state != self.state:
            self.state = state
            self._on_change(state)
