"""A circuit breaker: after several failures in a row calls stop until a probe succeeds.

::

    closed ── failures in a row ──> open ── after a pause ──> half-open ── the probe succeeds ──> closed
                                     ^──────── the probe fails ──────┘
"""

from __future__ import annotations

from collections.abc import Callable

from service.cache.protocol import BreakerState

THRESHOLD = 3


class CircuitBreaker:
    """Opens after ``THRESHOLD`` failures in a row. Whoever sends probes announces each with ``start_probe``."""

    def __init__(self, on_change: Callable[[BreakerState], None]) -> None:
        self.state: BreakerState = "closed"
        self._on_change = on_change
        self._failures = 0

    def start_probe(self) -> None:
        """The next success closes the circuit, the next failure opens it."""
        self._set_state("half-open")

    def record_success(self) -> None:
        """A call succeeded. Ignored while open: that call started before the breaker opened."""
        if self.state != "open":
            self._failures = 0
            self._set_state("closed")

    def record_failure(self) -> None:
        """A call failed."""
        self._failures += 1
        if self.state == "half-open" or self._failures >= THRESHOLD:
            self.open()

    def open(self) -> None:
        """Opens the circuit."""
        self._set_state("open")

    def _set_state(self, state: BreakerState) -> None:
        if state != self.state:
            self.state = state
            self._on_change(state)
