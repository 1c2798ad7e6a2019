"""The circuit breaker, with a fake clock."""

from __future__ import annotations

import pytest

from service.cache.protocol import BreakerState
from service.cache.redis.circuit_breaker import CircuitBreaker


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def changes() -> list[BreakerState]:
    return []


@pytest.fixture
def breaker(clock: Clock, changes: list[BreakerState]) -> CircuitBreaker:
    return CircuitBreaker(threshold=3, pause=5, clock=clock, on_change=changes.append)


def test_it_opens_after_consecutive_failures_only(breaker: CircuitBreaker) -> None:
    for _ in range(5):
        breaker.record_failure()
        breaker.record_failure()
        breaker.record_success()
    assert breaker.state == "closed"
    for _ in range(3):
        breaker.record_failure()
    assert breaker.state == "open"


def test_one_probe_is_due_after_each_pause(breaker: CircuitBreaker, clock: Clock) -> None:
    for _ in range(3):
        breaker.record_failure()
    clock.now += 4.9
    assert not breaker.wants_probe()
    clock.now += 0.1
    assert [breaker.wants_probe() for _ in range(3)] == [True, False, False]
    breaker.record_failure()
    assert not breaker.wants_probe()
    clock.now += 5
    assert breaker.wants_probe()


def test_a_successful_probe_closes_it_but_an_earlier_call_does_not(
    breaker: CircuitBreaker, clock: Clock, changes: list[BreakerState]
) -> None:
    for _ in range(3):
        breaker.record_failure()
    breaker.record_success()
    assert breaker.state == "open"
    clock.now += 5
    breaker.wants_probe()
    breaker.record_success()
    breaker.record_failure()  # counted from zero again
    assert changes == ["open", "half-open", "closed"]
