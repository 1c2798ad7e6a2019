"""Refusals of a real Redis: told once in the log, with the server's words, until they end."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from service.cache.redis.checking import failing_commands
from service.cache.redis.connection import CONNECTIONS
from service.cache.redis.guard import RedisGuard
from service.cache.redis_cache import RedisCache
from tests.service.cache.conftest import PATIENCE, FakeObserver, until_known
from tests.service.cache.redis_server import RedisServer
from tests.service.cache.test_contract import entry

pytestmark = pytest.mark.anyio

Open = Callable[..., RedisCache]

ENTRIES = [entry(number) for number in range(64)]
KEY, CODE = ENTRIES[0]


async def use(cache: RedisCache) -> None:
    """What an encode request does."""
    if await cache.get_many([KEY]) == [None]:
        await cache.claim_many([KEY])
        await cache.put_many([(KEY, CODE)])


async def until(cache: RedisCache, *, fails: bool) -> None:
    async with asyncio.timeout(PATIENCE):
        while (cache.status.failure is not None) is not fails:
            await use(cache)
            await asyncio.sleep(0.01)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("service.cache")]


@pytest.mark.parametrize(
    ("break_it", "repair", "url", "words"),
    [
        (
            "CONFIG SET requirepass other",
            "CONFIG SET requirepass s3cret",
            ":s3cret@{}",
            "invalid username-password pair",
        ),
        ("PING", None, "{}?db=99", "out of range"),
        ("ACL SETUSER default -mget", "ACL SETUSER default +mget", "{}", "get: .*no permissions"),
        ("ACL SETUSER default -set", "ACL SETUSER default +set", "{}", "claim: .*no permissions"),
        ("ACL SETUSER default -@all", "ACL SETUSER default +@all", "{}", "no permissions"),
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "{}", "command not allowed when used memory"),
        ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0", "{}", "Not enough good replicas"),
    ],
    ids=["password", "database", "no MGET", "no SET", "nothing", "full", "no replicas"],
)
async def test_a_refusal_is_logged_once_and_its_end_too(
    own_redis: RedisServer,
    open_redis: Open,
    caplog: pytest.LogCaptureFixture,
    break_it: str,
    repair: str | None,
    url: str,
    words: str,
) -> None:
    caplog.set_level(logging.INFO)
    own_redis.start()
    with own_redis.client() as client:  # stays connected and allowed
        client.execute_command("ACL SETUSER admin on nopass +@all ~*")
        client.execute_command("AUTH admin x")
        client.execute_command(break_it)
        cache = open_redis(f"unix://{url.format(own_redis.socket)}", breaker_pause=0.05)
        await until(cache, fails=True)
        for _ in range(20):
            await use(cache)
            await asyncio.sleep(0.01)
        [line] = messages(caplog)
        assert re.search(words, line)
        assert "s3cret" not in line + str(cache.status)
        caplog.clear()
        if repair is not None:
            client.execute_command(repair)
            while cache.status.failure is not None:  # noqa: ASYNC110  without requests
                await asyncio.sleep(0.01)
            await cache.put_many([(KEY, CODE)])
            await until_known(cache, KEY)
            assert messages(caplog) == ["cache: Redis works again"]


async def test_a_loading_redis_is_used_when_it_has_loaded(
    own_redis: RedisServer, open_redis: Open, caplog: pytest.LogCaptureFixture
) -> None:
    with own_redis.start().client() as client:
        client.mset({f"key {number}": "x" * 100 for number in range(2000)})
        client.save()
        own_redis.kill()
        own_redis.launch("--key-load-delay", "500", "--loading-process-events-interval-bytes", "1024")
        async with asyncio.timeout(PATIENCE):
            while not own_redis.is_listening():  # noqa: ASYNC110  another process does it
                await asyncio.sleep(0.001)
        cache = open_redis(own_redis.url, breaker_pause=0.05)
        cache.connect()
        await until(cache, fails=True)
        assert "loading the dataset" in str(cache.status.failure)
        await until(cache, fails=False)
        await until_known(cache, KEY)


async def test_writes_follow_the_name_of_a_primary_that_became_a_replica(
    own_redis: RedisServer, redis_server: RedisServer, open_redis: Open, observer: FakeObserver, tmp_path: Path
) -> None:
    name = tmp_path / "name.sock"
    name.symlink_to(own_redis.start().socket)
    cache = open_redis(f"unix://{name}", breaker_pause=0.05)
    await cache.put_many([(KEY, CODE)])
    await until_known(cache, KEY)
    with own_redis.client() as old, redis_server.client() as new:
        old.execute_command("REPLICAOF localhost 1")
        name.unlink()
        name.symlink_to(redis_server.socket)
        async with asyncio.timeout(PATIENCE):
            while not new.exists(KEY):
                await cache.put_many([(KEY, CODE)])
                await asyncio.sleep(0.01)
    assert observer.failures["put", "response"] < 10


async def test_the_first_connection_tells_what_is_wrong_and_looks_for_the_end_of_it(
    own_redis: RedisServer, open_redis: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cache = open_redis(own_redis.url, breaker_pause=0.05)
    cache.connect()
    async with asyncio.timeout(PATIENCE):
        while cache.status.failure is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        own_redis.start()
        while cache.status.failure is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    first, second = messages(caplog)
    assert "No such file" in first
    assert second == "cache: Redis works again"


async def test_what_could_not_be_written_is_written_when_redis_is_back(
    own_redis: RedisServer, open_redis: Open
) -> None:
    cache = open_redis(own_redis.url, breaker_pause=0.05)
    while cache.status.failure is None:
        await cache.get_many([KEY])
    await cache.put_many(ENTRIES)
    own_redis.start()
    await until_known(cache, *(key for key, _ in ENTRIES))


async def test_concurrent_misses_claim_and_store_all_keys(
    redis_server: RedisServer, open_redis: Open, observer: FakeObserver
) -> None:
    cache = open_redis(redis_server.url)

    async def miss(number: int) -> bool:
        key, code = ENTRIES[number]
        assert await cache.get_many([key]) == [None]
        [claim] = await cache.claim_many([key])
        await cache.put_many([(key, code)])
        return claim.is_own

    assert all(await asyncio.gather(*map(miss, range(64))))
    await until_known(cache, *(key for key, _ in ENTRIES))
    assert not observer.failures
    assert observer.successes["claim"] <= 3
    with redis_server.client() as client:
        assert client.dbsize() == 64  # and no claim


@pytest.mark.parametrize(("options", "connections"), [("", CONNECTIONS), ("?max_connections=1", 1)])
async def test_calls_wait_for_a_free_connection(
    redis_server: RedisServer, observer: FakeObserver, options: str, connections: int
) -> None:
    guard = RedisGuard(
        redis_server.url + options, "test", timeout=PATIENCE, observer=observer, probe=lambda: guard.client.ping()
    )
    await asyncio.gather(*(guard.call("get", partial(guard.client.get, KEY)) for _ in range(200)))
    assert observer.successes == {"get": 200}
    with redis_server.client() as client:
        assert len(client.client_list()) <= connections + 2
    await guard.close()


async def test_the_check_names_the_commands_that_are_refused(own_redis: RedisServer) -> None:
    with own_redis.start().client() as client:
        assert await failing_commands(own_redis.url, "titok") == []
        client.execute_command("ACL SETUSER titok on >s3cret ~titok:* +@read +@connection")
    [no_set, no_unlink, no_eval] = await failing_commands(f"unix://titok:s3cret@{own_redis.socket}", "titok")
    assert no_set.startswith("SET (cache): ")
    assert no_unlink.startswith("UNLINK (cache): ")
    assert no_eval.startswith("EVAL (rate limits): ")
    [wrong] = await failing_commands(f"unix://titok:other@{own_redis.socket}", "titok")
    assert "invalid username-password" in wrong
    own_redis.kill()
    [absent] = await failing_commands(own_redis.url, "titok")
    assert "Connection refused" in absent
