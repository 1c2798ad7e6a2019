"""Rates shared through a real Redis, and what becomes of them while it does not answer."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from service.api.access.rates import Rates
from service.settings import Settings
from tests.service.cache.redis_server import RedisServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    yield server
    server.kill()


@pytest.fixture
async def open_rates() -> AsyncIterator[Callable[..., Rates]]:
    opened: list[Rates] = []

    def open_rates(redis: RedisServer, **settings: float) -> Rates:
        opened.append(Rates(Settings(redis_url=redis.url, **{"redis_timeout": 1.0, **settings})))  # type: ignore[arg-type]
        return opened[-1]

    yield open_rates
    for rates in opened:
        await rates.close()


async def test_processes_that_share_a_redis_share_a_callers_rate(
    redis: RedisServer, open_rates: Callable[..., Rates]
) -> None:
    one, other = open_rates(redis.start()), open_rates(redis)
    spent = [await rates.spend("ann", "10/hour", 4) for rates in (one, other, one)]
    assert [(allowance.is_allowed, allowance.remaining) for allowance in spent] == [(True, 6), (True, 2), (False, 2)]
    assert (spent[0].quota, spent[0].window) == (10, 3600)
    assert 0 < spent[0].reset <= 3600
    # Also where less than a millisecond, Redis's unit, lies between spending and asking.
    assert all([0 < (await one.spend(f"caller {n}", "10/hour", 4)).reset <= 3600 for n in range(100)])
    assert (await other.spend("bob", "10/hour", 10)).is_allowed
    with redis.client() as client:
        assert all(b"titok:rates" in key for key in client.scan_iter())
        assert all(client.ttl(key) > 0 for key in client.scan_iter())


async def test_while_redis_is_gone_each_process_counts_for_itself(
    redis: RedisServer, open_rates: Callable[..., Rates]
) -> None:
    rates = open_rates(redis.start())
    assert (await rates.spend("ann", "2/hour", 2)).remaining == 0
    redis.kill()
    spent = [await rates.spend("ann", "2/hour", 1) for _ in range(3)]
    assert [allowance.is_allowed for allowance in spent] == [True, True, False]


async def test_a_redis_that_hangs_is_asked_three_times_and_then_left_alone(
    redis: RedisServer, open_rates: Callable[..., Rates]
) -> None:
    rates = open_rates(redis.start(), redis_timeout=0.01)
    redis.signal(signal.SIGSTOP)
    try:
        for _ in range(5):
            assert (await rates.spend("ann", "100/hour", 1)).is_allowed
        assert rates._redis is not None
        assert not rates._redis.is_available()
    finally:
        redis.signal(signal.SIGCONT)


async def test_without_a_redis_a_process_counts_for_itself() -> None:
    rates = Rates(Settings())
    assert [(await rates.spend("ann", "3 per 10 minutes", 2)).is_allowed for _ in range(2)] == [True, False]
    assert (await rates.spend("ann", "3 per 10 minutes", 1)).remaining == 0
    await rates.close()
