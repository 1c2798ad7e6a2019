"""Redis down, paused, full, slow or with invalid data: a look-up is a miss, and never raises or returns a wrong code.

Processes and sockets are real. How long things take is measured in tests/benchmarks/cache.py, and decides nothing here.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.cache import CachedCode
from service.cache.redis_cache import RedisCache
from service.cache.values import pack_value
from tests.service.cache.conftest import PATIENCE, FakeObserver, until_known
from tests.service.cache.redis_server import RedisServer
from tests.service.cache.test_contract import KEYS, entry

pytestmark = pytest.mark.anyio

Open = Callable[..., RedisCache]

ENTRIES = [entry(number) for number in range(50)]


async def ask(cache: RedisCache, requests: int = 200) -> int:
    """Number of hits of concurrent look-ups, a fifth of them cancelled. Asserts that no code is of another key."""

    async def request(number: int) -> int:
        key, code = ENTRIES[number % len(ENTRIES)]
        [found] = await cache.get_many([key])
        assert found in (None, code)
        await cache.put_many([(key, code)])
        return found is not None

    requests_ = [asyncio.create_task(request(number)) for number in range(requests)]
    await asyncio.sleep(0)
    for cancelled in requests_[::5]:
        cancelled.cancel()
    outcomes = await asyncio.gather(*requests_, return_exceptions=True)
    assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    return sum(outcome for outcome in outcomes if isinstance(outcome, int))


async def until_some_are_known(cache: RedisCache) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await ask(cache, 50):  # noqa: ASYNC110  another process does it
            await asyncio.sleep(0.01)


async def test_lookups_miss_until_redis_starts(
    own_redis: RedisServer, open_redis: Open, observer: FakeObserver
) -> None:
    cache = open_redis(own_redis.url, breaker_pause=0.05)
    for _ in range(5):
        assert await ask(cache) == 0
    assert observer.states[0] == "open"
    assert observer.failures["get", "connection"] >= 1
    own_redis.start()
    await until_some_are_known(cache)
    assert observer.states[-1] == "closed"


async def test_a_redis_restarted_empty_is_filled_again(own_redis: RedisServer, open_redis: Open) -> None:
    cache = open_redis(own_redis.start().url, breaker_pause=0.05)
    await until_some_are_known(cache)
    working = asyncio.create_task(ask(cache, 2000))
    await asyncio.sleep(0)
    own_redis.kill()
    await working
    assert await ask(cache) == 0
    own_redis.start()
    await until_some_are_known(cache)


async def test_a_paused_redis_opens_the_circuit_until_it_responds_again(
    own_redis: RedisServer, open_redis: Open, observer: FakeObserver
) -> None:
    cache = open_redis(own_redis.start().url, timeout=0.01, breaker_pause=0.05)
    await until_some_are_known(cache)
    own_redis.signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(PATIENCE):
            while "open" not in observer.states:
                assert await ask(cache) == 0
        for _ in range(5):
            assert await ask(cache) == 0
    finally:
        own_redis.signal(signal.SIGCONT)
    await until_some_are_known(cache)
    assert observer.failures["get", "timeout"] >= 1


@asynccontextmanager
async def delayed(server: RedisServer, seconds: float, folder: Path) -> AsyncIterator[str]:
    """The URL of a proxy that delays every answer."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, questions = await asyncio.open_unix_connection(server.socket)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, delay: float) -> None:
            try:
                while data := await source.read(65536):
                    await asyncio.sleep(delay)
                    sink.write(data)
                    await sink.drain()
            except ConnectionError:
                pass
            finally:
                sink.close()

        await asyncio.gather(pump(reader, questions, 0), pump(answers, writer, seconds))

    path = folder / "proxy.sock"
    async with await asyncio.start_unix_server(serve, path):
        yield f"unix://{path}"


async def test_a_redis_with_200_ms_latency_opens_the_circuit(
    redis_server: RedisServer, open_redis: Open, observer: FakeObserver, tmp_path: Path
) -> None:
    with redis_server.client() as client:
        for key, code in ENTRIES:
            client.set(key, pack_value(key, code))
    async with delayed(redis_server, 0.2, tmp_path) as url:
        cache = open_redis(url, timeout=0.01)
        for _ in range(5):
            assert await ask(cache) == 0
        assert observer.states[0] == "open"
        await cache.close()


async def test_a_full_redis_without_eviction_still_serves_reads(
    own_redis: RedisServer, open_redis: Open, observer: FakeObserver
) -> None:
    cache = open_redis(own_redis.start("--maxmemory-policy", "noeviction").url)
    await until_some_are_known(cache)
    with own_redis.client() as client:
        client.config_set("maxmemory", 1)
    await cache.put_many([entry(1000)])
    async with asyncio.timeout(PATIENCE):
        while not observer.failures["put", "response"]:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert await ask(cache) > 0
    assert await cache.get_many([entry(1000)[0]]) == [None]
    assert observer.states == []


async def test_a_full_redis_with_eviction_still_accepts_writes(own_redis: RedisServer, open_redis: Open) -> None:
    cache = open_redis(own_redis.start("--maxmemory-policy", "allkeys-lru", "--maxmemory", "3mb").url)
    for start in range(0, 20_000, 500):
        await cache.put_many([entry(number) for number in range(start, start + 500)])
        await until_known(cache, entry(start + 499)[0])
    with own_redis.client() as client:
        assert 0 < client.dbsize() < 20_000
    found = await cache.get_many([entry(number)[0] for number in range(20_000)])
    assert all(code in (None, entry(number)[1]) for number, code in enumerate(found))


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"garbage",
        pack_value(*ENTRIES[0])[:-1],
        pack_value(*ENTRIES[0]) + b"\0",
        pack_value(*ENTRIES[1]),
        pack_value(ENTRIES[0][0], CachedCode(bytes(5000), (1, 1))),
    ],
    ids=["empty", "garbage", "cut", "longer", "another key's", "too long"],
)
async def test_an_invalid_value_is_a_miss_and_is_replaced(
    redis_server: RedisServer, open_redis: Open, observer: FakeObserver, value: bytes
) -> None:
    key, code = ENTRIES[0]
    with redis_server.client() as client:
        client.set(key, value)
    cache = open_redis(redis_server.url)
    assert await cache.get_many([key]) == [None]
    assert observer.failures == {("get", "value"): 1}
    await cache.put_many([(key, code)])
    await until_known(cache, key)
    assert await cache.get_many([key]) == [code]


async def test_a_key_of_another_type_is_a_miss_and_is_replaced(
    redis_server: RedisServer, open_redis: Open, observer: FakeObserver
) -> None:
    key, code = ENTRIES[0]
    with redis_server.client() as client:
        client.rpush(key, b"a list")
    cache = open_redis(redis_server.url)
    assert await cache.get_many([key, ENTRIES[1][0]]) == [None, None]
    await cache.put_many([(key, code)])
    await until_known(cache, key)
    assert observer.states == []


async def test_codes_expire(redis_server: RedisServer, open_redis: Open) -> None:
    cache = open_redis(redis_server.url, ttl=3600)
    await cache.put_many(ENTRIES[:1])
    await until_known(cache, ENTRIES[0][0])
    with redis_server.client() as client:
        assert 3500 < client.ttl(ENTRIES[0][0]) <= 3600


async def test_pending_writes_are_bounded(redis_server: RedisServer, open_redis: Open, observer: FakeObserver) -> None:
    cache = open_redis(redis_server.url, max_writes=10)
    await cache.put_many(ENTRIES)
    assert observer.failures == {("put", "backlog"): 40}
    await until_known(cache, *(key for key, _ in ENTRIES[:10]))


async def test_a_value_over_the_size_limit_is_not_written(
    redis_server: RedisServer, open_redis: Open, observer: FakeObserver
) -> None:
    cache = open_redis(redis_server.url, max_value_bytes=64)
    await cache.put_many([(KEYS.upload(bytes(32)), CachedCode(bytes(64), (1, 1)))])
    assert observer.failures == {("put", "too_long"): 1}


async def test_an_image_takes_less_than_250_bytes_of_redis(redis_server: RedisServer, open_redis: Open) -> None:
    cache = open_redis(redis_server.url, ttl=3600)
    key = KEYS.upload(bytes(range(32)))
    await cache.put_many([(key, CachedCode(bytes(range(48)), (4032, 3024)))])
    await until_known(cache, key)
    with redis_server.client() as client:
        assert client.memory_usage(key) <= 250


async def test_concurrent_lookups_share_a_round_trip(
    redis_server: RedisServer, open_redis: Open, observer: FakeObserver
) -> None:
    cache = open_redis(redis_server.url)
    await cache.put_many(ENTRIES)
    await until_known(cache, *(key for key, _ in ENTRIES))
    before = observer.successes["get"]
    answers = await asyncio.gather(*(cache.get_many([key]) for key, _ in ENTRIES))
    assert answers == [[code] for _, code in ENTRIES]
    assert observer.successes["get"] - before <= 2
