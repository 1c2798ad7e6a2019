"""Rate limits of images by key: counted in this process, and in Redis for all processes together.

::

    consume ─> fits in this process, circuit closed? ── yes ──> fits in Redis? 10 ms at most ── answered ──> allowed or not
                              │ no                                      │ not in time
                              └──────────> this process decides <───────┘

So no process allows more than the rate, whether Redis answers or not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import partial

from cachetools import LRUCache

from service.api.access.sliding_window import SCRIPT, WindowState
from service.cache.protocol import CacheObserver, StoreStatus
from service.cache.redis.coalescing import Coalescer
from service.cache.redis.guard import RedisGuard
from service.settings import Settings, parse_rate

_CALLERS = 100_000  # counted in a process; the one seen longest ago is forgotten first
_CLOCK_MARGIN = 50  # milliseconds by which a window in Redis may begin after that of a process


@dataclass(frozen=True, kw_only=True)
class RateLimitResult:
    """Whether images were counted, of ``quota`` images in a window of ``window`` seconds, and the states after that."""

    is_allowed: bool
    quota: int
    window: int
    states: Sequence[WindowState]

    @property
    def remaining(self) -> int:
        """Images that fit now."""
        return max(0, self.quota - max(state.used(1000 * self.window) for state in self.states))

    def wait(self, images: int) -> float:
        """Seconds until ``images``, at most the quota, fit."""
        longest = max(state.wait(images, quota=self.quota, length=1000 * self.window) for state in self.states)
        return (longest + _CLOCK_MARGIN) / 1000 if longest else 0.0

    def headers(self) -> dict[str, str]:
        """``RateLimit-Policy`` and ``RateLimit`` (draft-ietf-httpapi-ratelimit-headers)."""
        reset = math.ceil(self.wait(min(self.remaining + 1, self.quota)))
        return {
            "RateLimit-Policy": f'"images";q={self.quota};w={self.window};qu="images"',
            "RateLimit": f'"images";r={self.remaining};t={reset}',
        }


class RateLimiter:
    """Counts the images of callers: in this process, and in Redis if it is configured and answers in time."""

    def __init__(self, settings: Settings, observer: CacheObserver | None = None) -> None:
        self._local: LRUCache[str, tuple[int, WindowState]] = LRUCache(_CALLERS)
        self._prefix = f"{settings.cache_namespace}:rates:"
        self._guard: RedisGuard | None = None
        # Keys may have rates of their own, also keys that are read later.
        self._has_rates = bool(settings.anonymous_rate_limit or settings.api_keys or settings.api_keys_file)
        if settings.redis_url is not None and self._has_rates:
            url = settings.redis_url.get_secret_value()
            self._guard = RedisGuard(
                url,
                "rate limits",
                timeout=settings.redis_timeout,
                observer=observer,
                probe=partial(self._consume_shared, [(f"{self._prefix}probe", 2**31, 1000, 1)]),
            )
            self._shared = Coalescer(self._guard, "consume", self._consume_shared)

    def connect(self) -> None:
        """Connects to Redis in the background."""
        if self._guard is not None:
            self._guard.connect()

    @property
    def status(self) -> StoreStatus:
        """Where images are counted, and what fails there."""
        if self._guard is None:
            return StoreStatus("memory" if self._has_rates else "off")
        return StoreStatus("redis", self._guard.health.failure)

    async def consume(self, caller: str, rate: str, images: int) -> RateLimitResult:
        """Counts ``images`` to a caller's ``rate``, all of them or none. A negative number gives images back."""
        quota, window = parse_rate(rate)
        key = f"{caller}:{quota}/{window}"
        is_allowed, state = self._consume_local(key, quota, 1000 * window, images)
        states = [state]
        if self._guard is not None:
            # Also if they do not fit here: the answer says when they will fit there.
            arguments = (self._prefix + key, quota, 1000 * window, images if is_allowed else 0)
            answers = await self._shared.call([arguments])
            if answers is not None and isinstance(answers[0], list):
                fits, *numbers = answers[0]
                states.append(WindowState(*numbers))
                if is_allowed and not fits:
                    is_allowed = False
                    states[0] = self._consume_local(key, quota, 1000 * window, -images)[1]
        return RateLimitResult(is_allowed=is_allowed, quota=quota, window=window, states=states)

    async def close(self) -> None:
        """Closes the connections to Redis."""
        if self._guard is not None:
            await self._guard.close()

    def _consume_local(self, key: str, quota: int, length: int, images: int) -> tuple[bool, WindowState]:
        now = time.monotonic_ns() // 1_000_000
        then, state = self._local.get(key, (now, WindowState()))
        state = state.advanced(now - then, length)
        is_allowed = images < 0 or state.used(length) + images <= quota
        if is_allowed:
            state = state.add(images)
            self._local[key] = now, state
        return is_allowed, state

    def _consume_shared(self, calls: Sequence[tuple[str, int, int, int]]) -> Awaitable[Sequence[object]]:
        assert self._guard is not None  # noqa: S101  it calls this
        pipeline = self._guard.client.pipeline(transaction=False)
        for key, quota, length, images in calls:
            pipeline.eval(SCRIPT, 1, key, str(quota), str(length), str(images))
        answer: Awaitable[Sequence[object]] = pipeline.execute(raise_on_error=False)
        return answer
