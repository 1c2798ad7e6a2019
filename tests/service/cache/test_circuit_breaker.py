"""The circuit breaker."""

from __future__ import annotations

import pytest

from service.cache.protocol import BreakerState
from service.cache.redis.circuit_breaker import CircuitBreaker


@pytest.fixture
def changes() -> list[BreakerState]:
    return []


@pytest.fixture
def breaker(changes: list[BreakerState]) -> CircuitBreaker:
    return CircuitBreaker(changes.append)


def test_it_opens_after_consecutive_failures_only(breaker: CircuitBreaker) -> None:
    for _ in range(5):
        breaker.record_failure()
        breaker.record_failure()
        breaker.record_success()
    assert breaker.state == "closed"
    for _ in range(3):
        breaker.record_failure()
    assert breaker.state == "open"


def test_a_failed_probe_opens_it_again(breaker: CircuitBreaker, changes: list[BreakerState]) -> None:
    breaker.start_probe()
    breaker.record_failure()
    assert changes == ["half-open", "open"]


def test_a_successful_probe_closes_it_but_an_earlier_call_does_not(
    breaker: CircuitBreaker, changes: list[BreakerState]
) -> None:
    for _ in range(3):
        breaker.record_failure()
    breaker.record_success()
    assert breaker.state == "open"
    breaker.start_probe()
    breaker.record_success()
    breaker.record_failure()  # counted from zero again
    assert changes == ["open", "half-open", "closed"]
