"""Rates of images by key: counted in Redis for all processes together, or here where there is none or it does not answer.

::

    spend ── circuit closed? ── yes ──> Redis, 10 ms at most ── answered ──> allowed, or not
                   │ no                        │ not in time
                   └──────> this process <─────┘

The count is that of a sliding window: what was spent in the fixed window before weighs as much of it as still lies within
the rate's time.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage, RedisClusterStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.asyncio import Redis

from service.cache.redis.connection import RedisClient, connect
from service.cache.redis.guard import SOCKET_TIMEOUT, RedisGuard
from service.settings import Settings

__all__ = ["Allowance", "Rates"]


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What became of an attempt to spend: ``remaining`` of ``quota`` images in a window of ``window`` seconds, and
    ``reset``, the seconds until there is more.
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


class Rates:
    """Counts the images of callers: in Redis if it answers in time, else in this process."""

    def __init__(self, settings: Settings) -> None:
        self._local = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._redis: RedisGuard | None = None
        if settings.redis_url is not None:
            url = settings.redis_url.get_secret_value()
            client = connect(url, socket_timeout=SOCKET_TIMEOUT)
            self._redis = RedisGuard(client, timeout=settings.redis_timeout)
            self._shared = SlidingWindowCounterRateLimiter(_storage(client, url, f"{settings.cache_namespace}:rates"))

    async def spend(self, caller: str, rate: str, images: int) -> Allowance:
        """Spends ``images`` of a caller's ``rate``, all of them or none."""
        item = _parsed(rate)
        if self._redis is not None and self._redis.is_available():
            allowance = await self._redis.call("spend", _spend(self._shared, item, caller, images))
            if allowance is not None:
                return allowance
        return await _spend(self._local, item, caller, images)

    async def close(self) -> None:
        """Closes the connections to Redis."""
        if self._redis is not None:
            await self._redis.close()


def _storage(client: RedisClient, url: str, prefix: str) -> RedisStorage:
    """A storage of the limiter's own kind on connections of ours, whose time-outs and Sentinels are set up already."""
    if isinstance(client, Redis):
        options = cast("dict[str, Any]", {"connection_pool": client.connection_pool})
        return RedisStorage("async+redis://", implementation="redispy", key_prefix=prefix, **options)
    options = {"ssl": True} if url.startswith("rediss") else {}
    uri = "async+" + url.replace("rediss+cluster", "redis+cluster", 1)
    return RedisClusterStorage(uri, implementation="redispy", key_prefix=prefix, **options)


async def _spend(limiter: SlidingWindowCounterRateLimiter, item: RateLimitItem, caller: str, images: int) -> Allowance:
    is_allowed = await limiter.hit(item, caller, cost=images)
    stats = await limiter.get_window_stats(item, caller)
    window = item.get_expiry()
    remaining, reset = max(0, stats.remaining), max(0.0, stats.reset_time - time.time())
    if reset == 0 and remaining < item.amount:
        # The limiter takes a window's age modulo the window: one opened within this very millisecond is said to be over.
        reset = float(window)
    return Allowance(is_allowed=is_allowed, quota=item.amount, window=window, remaining=remaining, reset=reset)


@lru_cache(maxsize=1024)
def _parsed(rate: str) -> RateLimitItem:
    return parse(rate)
