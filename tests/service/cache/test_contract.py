"""The contract of every cache of codes."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from service.cache import CachedCode, CodeCache, KeySpace
from service.cache.memory import MemoryCache
from tests.service.cache.conftest import until_known

pytestmark = pytest.mark.anyio

KEYS = KeySpace("titok", "titok-mini-32", "594725129161-p1")


def entry(number: int) -> tuple[bytes, CachedCode]:
    """A key, and a code that belongs to it alone."""
    digest = number.to_bytes(32)
    return KEYS.upload(digest), CachedCode(digest + digest[:16], (number + 1, 2 * number + 1))


async def test_unknown_keys_are_misses(cache: CodeCache) -> None:
    assert await cache.get_many([entry(1)[0], entry(2)[0]]) == [None, None]
    assert await cache.get_many([]) == []


async def test_codes_are_returned_in_the_order_of_the_keys_with_the_original_size(cache: CodeCache) -> None:
    entries = dict(entry(number) for number in range(100))
    await cache.put_many(list(entries.items()))
    await until_known(cache, *entries)
    asked = [entry(number)[0] for number in (99, 7, 1000, 7, 0)]
    assert await cache.get_many(asked) == [entries.get(key) for key in asked]


async def test_putting_a_key_again_replaces_its_code(cache: CodeCache) -> None:
    key, old = entry(1)
    await cache.put_many([(key, old)])
    await until_known(cache, key)
    other = CachedCode(old.code, (640, 480))
    await cache.put_many([(key, other)])
    while await cache.get_many([key]) != [other]:  # noqa: ASYNC110  another process does it
        await asyncio.sleep(0.001)


async def test_no_request_gets_another_keys_code_while_half_are_cancelled(cache: CodeCache) -> None:
    order = random.Random(0)
    known = dict(entry(number) for number in range(300))

    async def request() -> int:
        keys = [entry(order.randrange(300))[0] for _ in range(order.randrange(1, 4))]
        found = await cache.get_many(keys)
        assert all(code is None or code == known[key] for key, code in zip(keys, found, strict=True))
        missing = [(key, known[key]) for key, code in zip(keys, found, strict=True) if code is None]
        await cache.put_many(missing)
        return len(missing)

    misses = 0
    for _ in range(50):
        requests = [asyncio.create_task(request()) for _ in range(80)]
        for cancelled in requests[::2]:
            for _ in range(order.randrange(3)):
                await asyncio.sleep(0)
            cancelled.cancel()
        outcomes = await asyncio.gather(*requests, return_exceptions=True)
        assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        misses = sum(outcome for outcome in outcomes[1::2] if isinstance(outcome, int))
    assert misses < 10  # nearly all are cached in the last round


async def test_long_entries_take_the_room_of_several_codes_in_memory() -> None:
    cache = MemoryCache(10)
    keys = [KEYS.upload(bytes([index])) for index in range(12)]
    await cache.put_many([(key, CachedCode(bytes(48), (1, 1))) for key in keys[:8]])
    await cache.put_many([(keys[8], CachedCode(bytes(4 * 512 + 1), (1, 1)))])  # as five codes
    assert [entry is not None for entry in await cache.get_many(keys[:9])] == [False] * 3 + [True] * 6
    await cache.put_many([(keys[9], CachedCode(bytes(11 * 512), (1, 1)))])  # more than all of the cache
    assert [entry is not None for entry in await cache.get_many(keys[3:10])] == [True] * 6 + [False]


def test_latents_never_share_a_key_with_codes() -> None:
    latents = replace(KEYS, latents=True)
    keys = {space.upload(b"1") for space in (KEYS, latents)} | {space.pixels(b"1") for space in (KEYS, latents)}
    assert len(keys) == 4
