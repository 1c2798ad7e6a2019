"""Rate limits shared through a real Redis, and while it does not answer."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.api.access.rate_limiter import RateLimiter
from service.cache.protocol import StoreStatus
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

    def open_limiter(redis: RedisServer, **settings: Any) -> RateLimiter:
        given = {"redis_url": redis.url, "redis_timeout": 1.0, "anonymous_rate_limit": "1/hour", **settings}
        opened.append(RateLimiter(Settings(**given)))
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
    assert (await one.consume("ann", "10/hour", 2)).is_allowed  # the refused images were not counted
    assert (await other.consume("bob", "10/hour", 10)).is_allowed
    with redis.client() as client:
        assert all(b"titok:rates" in key for key in client.scan_iter())
        assert all(client.ttl(key) > 0 for key in client.scan_iter())


@pytest.mark.parametrize("settings", [{"redis_timeout": 1.0}, {"redis_timeout": 0.0001}], ids=["patient", "late"])
async def test_concurrent_uses_never_exceed_the_rate(
    redis: RedisServer, open_limiter: Callable[..., RateLimiter], settings: dict[str, float]
) -> None:
    limiter = open_limiter(redis.start(), **settings)
    results = await asyncio.gather(*(limiter.consume("ann", "10/hour", 1) for _ in range(64)))
    assert sum(result.is_allowed for result in results) == 10
    assert not (await limiter.consume("ann", "10/hour", 1)).is_allowed
    if settings["redis_timeout"] == 1.0:
        others = [open_limiter(redis) for _ in range(2)]
        uses = [other.consume("bob", "10/hour", 2) for other in others for _ in range(32)]
        assert sum(result.is_allowed for result in await asyncio.gather(*uses)) == 5


async def test_a_process_goes_on_with_its_own_count_while_redis_is_down(
    redis: RedisServer, open_limiter: Callable[..., RateLimiter]
) -> None:
    limiter = open_limiter(redis.start())
    assert (await limiter.consume("ann", "3/hour", 2)).remaining == 1
    redis.kill()
    results = [await limiter.consume("ann", "3/hour", 1) for _ in range(3)]
    assert [result.is_allowed for result in results] == [True, False, False]


async def test_the_circuit_opens_after_three_timeouts(
    redis: RedisServer, open_limiter: Callable[..., RateLimiter]
) -> None:
    limiter = open_limiter(redis.start(), redis_timeout=0.01)
    redis.signal(signal.SIGSTOP)
    try:
        while limiter.status.failure is None:
            assert (await limiter.consume("ann", "1000000/hour", 1)).is_allowed
        assert limiter.status.failure == "consume: no answer within 10 ms"
    finally:
        redis.signal(signal.SIGCONT)


async def test_the_documented_permissions_suffice(redis: RedisServer, open_limiter: Callable[..., RateLimiter]) -> None:
    with redis.start().client() as client:
        client.execute_command("ACL SETUSER titok on >p ~titok:* +@read +@write +@connection +@scripting")
        limiter = open_limiter(redis, redis_url=f"unix://titok:p@{redis.socket}")
        limiter.connect()
        assert (await limiter.consume("ann", "3/hour", 1)).is_allowed
        assert limiter.status.failure is None
        assert client.hgetall("titok:rates:ann:3/3600") == {b"current": b"1", b"previous": b"0"}


async def test_a_refused_script_is_told_and_counted_locally(
    redis: RedisServer, open_limiter: Callable[..., RateLimiter]
) -> None:
    with redis.start().client() as client:
        client.execute_command("ACL SETUSER default -eval")
    limiter = open_limiter(redis)
    results = [await limiter.consume("ann", "3/hour", 1) for _ in range(4)]
    assert [result.is_allowed for result in results] == [True, True, True, False]
    assert "permission" in str(limiter.status.failure)


async def test_a_request_that_waits_until_all_of_it_fits_is_allowed(
    redis: RedisServer, open_limiter: Callable[..., RateLimiter]
) -> None:
    limiter = open_limiter(redis.start())
    assert (await limiter.consume("ann", "20/hour", 20)).is_allowed
    refused = await limiter.consume("ann", "20/hour", 10)
    assert 3600 < refused.wait(1) < refused.wait(10) < 7200
    assert (await limiter.consume("ann", "20/second", 20)).is_allowed
    refused = await limiter.consume("ann", "20/second", 10)
    assert not refused.is_allowed
    await asyncio.sleep(refused.wait(10))
    assert (await limiter.consume("ann", "20/second", 10)).is_allowed


async def test_redis_is_not_used_where_no_rate_can_apply(redis: RedisServer) -> None:
    limiter = RateLimiter(Settings(redis_url=redis.url))  # type: ignore[arg-type]
    limiter.connect()
    assert limiter.status == StoreStatus("off")


async def test_without_redis_a_process_counts_locally() -> None:
    limiter = RateLimiter(Settings(anonymous_rate_limit="1/hour"))
    assert limiter.status == StoreStatus("memory")
    assert [(await limiter.consume("ann", "3 per 10 minutes", 2)).is_allowed for _ in range(2)] == [True, False]
    assert (await limiter.consume("ann", "3 per 10 minutes", 1)).remaining == 0
    await limiter.close()
