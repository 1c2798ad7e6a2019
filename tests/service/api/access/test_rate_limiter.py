"""Rate limits shared through a real Redis, and while it does not answer."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from service.api.access.rate_limiter import RateLimiter
from service.settings import Settings
from tests.service.cache.redis_server import RedisServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    yield server
    server.kill()


@pytest.fixture
async def open_limiter() -> AsyncIterator[Callable[..., RateLimiter]]:
    opened: list[RateLimiter] = []

    def open_limiter(redis: RedisServer, **settings: float) -> RateLimiter:
        opened.append(RateLimiter(Settings(redis_url=redis.url, **{"redis_timeout": 1.0, **settings})))  # type: ignore[arg-type]
        return opened[-1]

    yield open_limiter
    for limiter in opened:
        await limiter.close()


async def test_processes_with_one_redis_share_the_count(
    redis: RedisServer, open_limiter: Callable[..., RateLimiter]
) -> None:
    one, other = open_limiter(redis.start()), open_limiter(redis)
    results = [await limiter.consume("ann", "10/hour", 4) for limiter in (one, other, one)]
    assert [(result.is_allowed, result.remaining) for result in results] == [(True, 6), (True, 2), (False, 2)]
    assert (results[0].quota, results[0].window) == (10, 3600)
    assert 0 < results[0].reset <= 3600
    # Also where less than a millisecond, Redis's unit, lies between spending and asking.
    assert all([0 < (await one.consume(f"caller {n}", "10/hour", 4)).reset <= 3600 for n in range(100)])
    assert (await other.consume("bob", "10/hour", 10)).is_allowed
    with redis.client() as client:
        assert all(b"titok:rates" in key for key in client.scan_iter())
        assert all(client.ttl(key) > 0 for key in client.scan_iter())


async def test_each_process_counts_locally_while_redis_is_down(
    redis: RedisServer, open_limiter: Callable[..., RateLimiter]
) -> None:
    limiter = open_limiter(redis.start())
    assert (await limiter.consume("ann", "2/hour", 2)).remaining == 0
    redis.kill()
    results = [await limiter.consume("ann", "2/hour", 1) for _ in range(3)]
    assert [result.is_allowed for result in results] == [True, True, False]


async def test_the_circuit_opens_after_three_timeouts(
    redis: RedisServer, open_limiter: Callable[..., RateLimiter]
) -> None:
    limiter = open_limiter(redis.start(), redis_timeout=0.01)
    redis.signal(signal.SIGSTOP)
    try:
        for _ in range(5):
            assert (await limiter.consume("ann", "100/hour", 1)).is_allowed
        assert limiter._redis is not None
        assert not limiter._redis.is_available()
    finally:
        redis.signal(signal.SIGCONT)


async def test_without_redis_a_process_counts_locally() -> None:
    limiter = RateLimiter(Settings())
    assert [(await limiter.consume("ann", "3 per 10 minutes", 2)).is_allowed for _ in range(2)] == [True, False]
    assert (await limiter.consume("ann", "3 per 10 minutes", 1)).remaining == 0
    await limiter.close()
