"""A circuit breaker: who fails several times in a row is left alone for a while, then tried once.

::

    closed ── failures in a row ──> open ── after a pause ──> half-open ── a probe succeeds ──> closed
                                     ^─────────── it fails ──────┘
"""

from __future__ import annotations

import time
from collections.abc import Callable

from service.cache.protocol import BreakerState

__all__ = ["CircuitBreaker"]


class CircuitBreaker:
    """Opens after ``threshold`` failures in a row, and asks for a probe every ``pause`` seconds from then on."""

    def __init__(
        self,
        *,
        threshold: int = 3,
        pause: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[BreakerState], None] = lambda _: None,
    ) -> None:
        self._threshold = threshold
        self._pause = pause
        self._clock = clock
        self._on_change = on_change
        self._failures = 0
        self._opened = 0.0
        self._state: BreakerState = "closed"

    @property
    def state(self) -> BreakerState:
        """Where it is."""
        return self._state

    def wants_probe(self) -> bool:
        """Whether the pause is over; from then on it is half-open, and the one who asked is to try and tell."""
        if self._state != "open" or self._clock() - self._opened < self._pause:
            return False
        self._become("half-open")
        return True

    def succeeded(self) -> None:
        """A try succeeded. What was begun before it opened proves nothing."""
        if self._state != "open":
            self._failures = 0
            self._become("closed")

    def failed(self) -> None:
        """A try failed."""
        self._failures += 1
        if self._state == "half-open" or self._failures >= self._threshold:
            self._opened = self._clock()
            self._become("open")

    def _become(self, state: BreakerState) -> None:
        if state != self._state:
            self._state = state
            self._on_change(state)
