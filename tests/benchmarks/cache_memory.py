"""Codes in Redis: bytes per image, and lookups among a million codes. Part of ``make bench-cache``."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from service.cache import CachedCode, KeySpace
from service.cache.redis.connection import connect, disconnect
from service.cache.redis_cache import RedisCache
from service.cache.statistics import collect_statistics
from service.cache.values import pack_value
from tests.benchmarks.cache_hits import REDIS_ONLY, make_known, redis
from tests.benchmarks.load import Request, capacity
from tests.benchmarks.served import DEFAULT_VARIANT, Model, jpegs, serve

CODES = 1_000_000
MGET_KEYS = 100
LOOKUP_DIGESTS = 1000


@dataclass(frozen=True)
class Million:
    """A Redis with ``codes`` synthetic codes. ``bytes_a_code`` is the growth of its memory per code.

    ``mget_ms`` is the median latency of looking up 100 codes with the cache's client; ``codes_by_http`` are codes per
    second by ``POST /v1/codes:lookup`` with 1,000 digests per request.
    """

    codes: int
    used_memory: int
    bytes_a_code: float
    mget_ms: float
    codes_by_mget: float
    codes_by_http: float


def bytes_of_a_key(folder: Path) -> tuple[float, float]:
    """Mean MEMORY USAGE of a key with its code, and of a new image, which has two keys."""
    images = jpegs(128, 32)
    with redis(folder) as server, serve(Model(DEFAULT_VARIANT), redis_url=server.url, **REDIS_ONLY) as (_, endpoint):
        make_known([endpoint], images)

        async def mean_bytes() -> tuple[float, float]:
            client = connect(server.url, socket_timeout=10)
            [revision] = (await collect_statistics(client, "titok", sample=1000)).revisions
            await disconnect(client)
            return revision.mean_bytes, revision.bytes / revision.uploads

        return asyncio.run(mean_bytes())


def million(folder: Path, *, seconds: float) -> Million:
    """Looks up codes in a Redis with random codes under random digests, with the service's time to live."""
    rng = random.Random(0)
    with redis(folder) as server, serve(Model(DEFAULT_VARIANT), redis_url=server.url, **REDIS_ONLY) as (ready, _):
        [info] = httpx.get(f"{ready.url}/v1/models").raise_for_status().json()["data"]
        space = KeySpace("titok", info["id"], info["revision"])
        digests = [rng.randbytes(32) for _ in range(CODES)]
        with server.client() as client:
            before = client.info("memory")["used_memory"]
            for start in range(0, CODES, 10_000):
                pipeline = client.pipeline(transaction=False)
                for digest in digests[start : start + 10_000]:
                    key = space.upload(digest)
                    pipeline.set(key, pack_value(key, CachedCode(rng.randbytes(48), (1024, 768))), ex=30 * 86_400)
                pipeline.execute()
            used = client.info("memory")["used_memory"]
        median, by_mget = asyncio.run(_mget(server.url, space, digests, seconds))
        sample = [digest.hex() for digest in rng.sample(digests, LOOKUP_DIGESTS)]
        request = Request(f"{ready.url}/v1/codes:lookup", json.dumps({"sha256": sample}).encode(), "application/json")
        rate, _ = capacity([request], connections=4, seconds=seconds, warm_up=1.0)
    return Million(
        codes=CODES,
        used_memory=used,
        bytes_a_code=(used - before) / CODES,
        mget_ms=median,
        codes_by_mget=by_mget,
        codes_by_http=LOOKUP_DIGESTS * rate,
    )


async def _mget(url: str, space: KeySpace, digests: Sequence[bytes], seconds: float) -> tuple[float, float]:
    cache = RedisCache(url, timeout=1.0)
    rng = random.Random(1)
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        keys = [space.upload(digest) for digest in rng.sample(digests, MGET_KEYS)]
        started = time.perf_counter()
        if None in await cache.get_many(keys):
            raise AssertionError("a stored code was not found")
        times.append(time.perf_counter() - started)
    await cache.close()
    return 1000 * float(np.median(times)), MGET_KEYS * len(times) / sum(times)
