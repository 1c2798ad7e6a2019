"""Fixtures: real Redis processes, caches of every kind, and a recording observer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from service.cache import CacheObserver, CodeCache, MemoryCache
from service.cache.protocol import BreakerState
from service.cache.redis_cache import RedisCache
from tests.service.cache.redis_server import RedisServer

PATIENCE = 60.0


class FakeObserver(CacheObserver):
    """Records every call."""

    def __init__(self) -> None:
        self.successes: Counter[str] = Counter()
        self.failures: Counter[tuple[str, str]] = Counter()
        self.states: list[BreakerState] = []

    def finished(self, op: str, seconds: float) -> None:  # noqa: ARG002
        self.successes[op] += 1

    def failed(self, op: str, reason: str) -> None:
        self.failures[op, reason] += 1

    def breaker(self, state: BreakerState) -> None:
        self.states.append(state)


@pytest.fixture
def observer() -> FakeObserver:
    return FakeObserver()


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server.start()
    server.kill()


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """An empty Redis that tests share: neither stop nor reconfigure it."""
    with shared_redis.client() as client:
        client.flushall()
    return shared_redis


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis for one test, not yet started."""
    server = RedisServer(tmp_path)
    yield server
    server.kill()


@pytest.fixture
async def open_redis(observer: FakeObserver) -> AsyncIterator[Callable[..., RedisCache]]:
    """Opens caches on a Redis by its URL, with a long time limit unless ``options`` set another."""
    opened: list[RedisCache] = []

    def open_redis(url: str, **options: float) -> RedisCache:
        opened.append(RedisCache(url, observer=observer, **{"timeout": PATIENCE, **options}))  # type: ignore[arg-type]
        return opened[-1]

    yield open_redis
    for cache in opened:
        await cache.close()


@pytest.fixture(params=["memory", "redis", "layered"])
def cache(request: pytest.FixtureRequest, anyio_backend: str, open_redis: Callable[..., RedisCache]) -> CodeCache:
    """One of each kind, empty."""
    if request.param == "memory":
        return MemoryCache(10_000)
    return open_redis(request.getfixturevalue("redis_server").url, front_entries=0 if request.param == "redis" else 100)


async def until_known(cache: CodeCache, *keys: bytes) -> None:
    """Waits until stored codes can be read."""
    async with asyncio.timeout(PATIENCE):
        while None in await cache.get_many(keys):  # noqa: ASYNC110  another process does it
            await asyncio.sleep(0.001)
