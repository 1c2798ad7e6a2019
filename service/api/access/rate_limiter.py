"""Rate limits of images by key: counted in Redis for all processes together; in this process if Redis does not answer.

::

    consume ── circuit closed? ── yes ──> Redis, 10 ms at most ── answered ──> allowed, or not
                     │ no                        │ not in time
                     └──────> this process <─────┘

Counts are those of a sliding window: the previous fixed window counts by the fraction of it that still lies within the
rate's period.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage, RedisClusterStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter as Limiter
from redis.asyncio import Redis

from service.cache.redis.connection import RedisClient, connect
from service.cache.redis.guard import SOCKET_TIMEOUT, RedisGuard
from service.settings import Settings

_parsed = lru_cache(maxsize=1024)(parse)


@dataclass(frozen=True, kw_only=True)
class RateLimitResult:
    """Whether images are allowed; ``remaining`` of ``quota`` images in a window of ``window`` seconds, and ``reset``, the
    seconds until there are more.
    """

    is_allowed: bool
    quota: int
    window: int
    remaining: int
    reset: float

    def headers(self) -> dict[str, str]:
        """``RateLimit-Policy`` and ``RateLimit`` (draft-ietf-httpapi-ratelimit-headers)."""
        return {
            "RateLimit-Policy": f'"images";q={self.quota};w={self.window};qu="images"',
            "RateLimit": f'"images";r={self.remaining};t={math.ceil(self.reset)}',
        }


class RateLimiter:
    """Counts the images of callers: in Redis if it answers in time, else in this process."""

    def __init__(self, settings: Settings) -> None:
        self._local = Limiter(MemoryStorage())
        self._redis: RedisGuard | None = None
        if settings.redis_url is not None:
            url = settings.redis_url.get_secret_value()
            client = connect(url, socket_timeout=SOCKET_TIMEOUT)
            self._redis = RedisGuard(client, timeout=settings.redis_timeout)
            self._shared = Limiter(_storage(client, url, f"{settings.cache_namespace}:rates"))

    async def consume(self, caller: str, rate: str, images: int) -> RateLimitResult:
        """Counts ``images`` to a caller's ``rate``, all of them or none."""
        item = _parsed(rate)
        if self._redis is not None and self._redis.is_available():
            result = await self._redis.call("consume", _consume(self._shared, item, caller, images))
            if result is not None:
                return result
        return await _consume(self._local, item, caller, images)

    async def close(self) -> None:
        """Closes the connections to Redis."""
        if self._redis is not None:
            await self._redis.close()


def _storage(client: RedisClient, url: str, prefix: str) -> RedisStorage:
    """The limiter's storage on the connections of ``client``, whose time-outs and Sentinels are configured already."""
    if isinstance(client, Redis):
        options = cast("dict[str, Any]", {"connection_pool": client.connection_pool})
        return RedisStorage("async+redis://", implementation="redispy", key_prefix=prefix, **options)
    options = {"ssl": True} if url.startswith("rediss") else {}
    uri = "async+" + url.replace("rediss+cluster", "redis+cluster", 1)
    return RedisClusterStorage(uri, implementation="redispy", key_prefix=prefix, **options)


async def _consume(limiter: Limiter, item: RateLimitItem, caller: str, images: int) -> RateLimitResult:
    is_allowed = await limiter.hit(item, caller, cost=images)
    stats = await limiter.get_window_stats(item, caller)
    window = item.get_expiry()
    remaining, reset = max(0, stats.remaining), max(0.0, stats.reset_time - time.time())
    if reset == 0 and remaining < item.amount:
        # The limiter takes a window's age modulo its length: it reports 0 for one opened within this millisecond.
        reset = float(window)
    return RateLimitResult(is_allowed=is_allowed, quota=item.amount, window=window, remaining=remaining, reset=reset)
