"""The batch limit of a lane while it serves."""

from __future__ import annotations

import pytest

from service.inference.adaptive_limit import AdaptiveLimit


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def grown(limit: AdaptiveLimit, clock: Clock, now: float, images: int) -> int:
    """The limit after so many images have fitted."""
    clock.now = now
    limit.grow(images)
    return limit.current


def test_a_limit_is_half_of_what_did_not_fit_and_grows_back_with_a_full_part_after_a_pause(clock: Clock) -> None:
    limit = AdaptiveLimit(64, clock=clock)
    limit.shrink(67)
    assert limit.current == 32
    assert grown(limit, clock, 59.0, 32) == 32
    assert grown(limit, clock, 60.0, 31) == 32
    assert grown(limit, clock, 61.0, 32) == 64
    assert grown(limit, clock, 999.0, 64) == 64


def test_each_failure_doubles_the_pause_until_an_hour_has_passed_without_one(clock: Clock) -> None:
    limit = AdaptiveLimit(8, clock=clock)
    limit.shrink(8)
    limit.shrink(4)
    assert limit.current == 2
    assert grown(limit, clock, 119.0, 2) == 2
    assert grown(limit, clock, 120.0, 2) == 4
    clock.now = 4000.0
    limit.shrink(3)
    assert limit.current == 1
    assert grown(limit, clock, 4060.0, 1) == 2
