"""Statistics and purging of codes on a real Redis."""

from __future__ import annotations

import hashlib

import pytest
import redis

from service.cache import CachedCode, KeySpace
from service.cache.keys import LEASE, KeyParts
from service.cache.purging import Selection, count_codes, purge_codes
from service.cache.redis.connection import connect, disconnect
from service.cache.statistics import CacheStatistics, collect_statistics
from service.cache.values import pack_value
from tests.service.cache.redis_server import RedisServer

pytestmark = pytest.mark.anyio

MINE = KeySpace("titok", "mini", "abc-p1")
SPACES = (
    MINE,
    KeySpace("titok", "mini", "abc-p2"),
    KeySpace("titok", "mini", "abcd-p1"),
    KeySpace("titok", "mini2", "abc-p1"),
    KeySpace("titok.b", "mini", "abc-p1"),
    KeySpace("tito?", "mini", "abc-p1"),
)
CODE = CachedCode(bytes(48), (640, 480))


def key_of(number: int, space: KeySpace = MINE) -> bytes:
    return space.upload(hashlib.sha256(b"%d" % number).digest())


def fill(client: redis.Redis, space: KeySpace, count: int) -> list[bytes]:
    keys = [key_of(number, space) for number in range(count)]
    keys += [space.pixels(hashlib.sha256(key).digest()) for key in keys[:2]]
    for key in keys:
        client.set(key, pack_value(key, CODE), ex=3600)
    return keys


async def statistics_of(server: RedisServer, sample: int = 100) -> CacheStatistics:
    client = connect(server.url, socket_timeout=10)
    try:
        return await collect_statistics(client, "titok", sample=sample)
    finally:
        await disconnect(client)


async def purge(server: RedisServer, **selected: str) -> tuple[int, int]:
    """Number of keys counted, and removed."""
    client = connect(server.url, socket_timeout=10)
    try:
        selection = Selection("titok", **selected)
        return await count_codes(client, selection), await purge_codes(client, selection)
    finally:
        await disconnect(client)


async def test_statistics_count_codes_by_revision_and_sample_memory_and_ttl(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        for space, count in zip(SPACES, (2000, 5, 4, 3, 9, 9), strict=True):
            fill(client, space, count)
        client.set(key_of(0) + LEASE, b"", ex=60)
        scoped = key_of(0, KeySpace("titok", "mini", "abc-p1", "ann"))
        client.set(scoped, pack_value(scoped, CODE))
        latents = KeySpace("titok", "mini2", "abc-p1", "ann", latents=True)
        fill(client, latents, 1)
        client.set("titok:v1:something", "else")
    statistics = await statistics_of(redis_server)
    assert [(entry.tokenizer, entry.revision, entry.uploads, entry.pixels) for entry in statistics.revisions] == [
        ("mini", "abc-p1", 2001, 2),
        ("mini", "abc-p2", 5, 2),
        ("mini2", "abc-p1", 4, 3),
        ("mini", "abcd-p1", 4, 2),
    ]
    first, second = statistics.revisions[:2]
    assert (first.leases, first.scoped, first.sampled, second.sampled) == (1, 1, 100, 7)
    assert 100 < second.mean_bytes < 250
    assert second.bytes == round(7 * second.mean_bytes)
    assert second.ttl is not None
    assert 3500 < second.ttl[0] <= second.ttl[2] <= 3600
    assert statistics.others == 1
    [server] = statistics.servers
    assert server.version.startswith(("Redis ", "Valkey "))
    assert (server.maxmemory, server.policy) == (0, "noeviction")


async def test_a_small_revision_is_sampled_completely(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        keys = fill(client, MINE, 30)
        client.persist(keys[0])
        total = sum(client.memory_usage(key, samples=0) for key in keys)
    [revision] = (await statistics_of(redis_server)).revisions
    assert (revision.bytes, revision.without_ttl) == (total, 1)


async def test_statistics_work_without_the_info_permission(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        fill(client, MINE, 3)
        client.execute_command("ACL SETUSER counter on >secret ~titok:* +@read +@connection")
    client_ = connect(f"unix://counter:secret@{redis_server.socket}", socket_timeout=10)
    statistics = await collect_statistics(client_, "titok", sample=10)
    await disconnect(client_)
    assert statistics.revisions[0].uploads == 3
    assert statistics.servers[0].version == ""


@pytest.mark.parametrize(
    ("selected", "gone"),
    [
        ({"revision": "abc-p1"}, {0, 3}),
        ({"tokenizer": "mini"}, {0, 1, 2}),
        ({"tokenizer": "mini", "revision": "abc-p1"}, {0}),
        ({"tokenizer": "m*"}, set()),
        ({}, {0, 1, 2, 3}),
    ],
)
async def test_purge_removes_only_the_selected_codes(
    redis_server: RedisServer, selected: dict[str, str], gone: set[int]
) -> None:
    with redis_server.client() as client:
        kept, removed = {b"other": 1, b"titok:v1:something": 1}, 0
        client.mset(kept)
        for number, space in enumerate(SPACES):
            keys = fill(client, space, 600)
            if number in gone:
                removed += len(keys)
            else:
                kept |= dict.fromkeys(keys, 1)
        assert await purge(redis_server, **selected) == (removed, removed)
        assert set(client.keys()) == set(kept)


@pytest.mark.parametrize(
    "key",
    [
        b"titok:v1:mini:abc:p1:" + b"0" * 63,
        b"titok:v1:mini:abc:p1:pixel:" + b"0" * 64,
        b"titok:v2:mini:abc:p1:" + b"0" * 64,
        b"titok:v1:" + b"0" * 64,
        b"titok:v1:mini:abc:p1:of-ann",
        b"titok:v1:mini:\xff:p1",
    ],
)
def test_malformed_keys_are_not_parsed(key: bytes) -> None:
    assert KeyParts.of(key, "titok") is None
