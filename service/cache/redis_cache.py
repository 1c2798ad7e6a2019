"""A cache of codes in Redis, shared by front ends and replicas.

::

    get_many ───> in memory? ── no ──> one MGET at a time for all that wait
    claim_many ─> one pipeline of SET NX and GET at a time for all that wait
    put_many ───> to be written ─> pipelines of SET, later
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from functools import partial

from redis.asyncio import RedisCluster

from service.cache.keys import LEASE, namespace_prefix
from service.cache.memory import MemoryCache
from service.cache.protocol import CachedCode, CacheObserver, Claim, CodeCache, StoreStatus
from service.cache.redis.coalescing import Coalescer
from service.cache.redis.guard import RedisGuard
from service.cache.values import pack_value, unpack_value

_WRITES_PER_PIPELINE = 256
_WRITE_TIMEOUTS = 10  # no request waits for a write, so it may take this many timeouts


class RedisCache(CodeCache):
    """See ``CodeCache``.

    While Redis fails, a key of the ``namespace`` is probed until that succeeds: a user may have access to no other. A round
    trip may take ``timeout`` seconds, and a look-up waits for at most two. Entries expire after ``ttl`` seconds
    (None: never), claims after ``lease`` (0: no claims are made). Values longer than ``max_value_bytes`` are neither
    written nor read, and at most ``max_writes`` wait to be written, also while Redis does not answer. ``front_entries``
    codes are kept in memory, too: a key's code never changes.
    """

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "titok",
        timeout: float = 0.01,
        ttl: int | None = None,
        lease: float = 2.0,
        front_entries: int = 0,
        max_value_bytes: int = 4096,
        max_writes: int = 10_000,
        observer: CacheObserver | None = None,
        breaker_pause: float = 1.0,
    ) -> None:
        self._guard = RedisGuard(
            url,
            "cache",
            timeout=timeout,
            observer=observer,
            breaker_pause=breaker_pause,
            probe=partial(self._probe, namespace_prefix(namespace) + b"probe"),
            on_recovery=self._start_writing,
        )
        self._client = self._guard.client
        self._lookups = Coalescer(self._guard, "get", self._values)
        self._claims = Coalescer(self._guard, "claim", self._set_leases, values_per_item=2)
        self._timeout = timeout
        self._ttl = ttl
        self._lease = lease
        self._front = MemoryCache(front_entries) if front_entries else CodeCache()
        self._claimed: dict[bytes, float] = {}
        self._max_value_bytes = max_value_bytes
        self._max_writes = max_writes
        self._observer = observer or CacheObserver()
        self._writes: deque[tuple[bytes, bytes | None]] = deque()
        self._writing = False

    def connect(self) -> None:
        """See ``CodeCache``."""
        self._guard.connect()

    @property
    def status(self) -> StoreStatus:
        """See ``CodeCache``."""
        return StoreStatus("redis", self._guard.health.failure)

    async def get_many(self, keys: Sequence[bytes]) -> list[CachedCode | None]:
        """See ``CodeCache``. All are unknown while Redis does not answer."""
        found = await self._front.get_many(keys)
        if missing := [index for index, entry in enumerate(found) if entry is None]:
            values = await self._lookups.call([keys[index] for index in missing]) or ()
            for index, value in zip(missing, values, strict=False):
                found[index] = self._unpack(keys[index], value)
            await self._front.put_many([(keys[index], entry) for index in missing if (entry := found[index])])
        return found

    async def put_many(self, entries: Sequence[tuple[bytes, CachedCode]]) -> None:
        """See ``CodeCache``. A background task writes them later."""
        await self._front.put_many(entries)
        for key, entry in entries:
            value = pack_value(key, entry)
            if self._accepts(value):
                self._writes.append((key, value))
            else:
                self._claimed.pop(key, None)
        self._start_writing()

    async def claim_many(self, keys: Sequence[bytes]) -> list[Claim]:
        """See ``CodeCache``. A claim is a key in Redis that only the first process can set."""
        answers = await self._claims.call(keys) if self._lease else None
        if answers is None:
            return [Claim(is_own=True)] * len(keys)
        claims = []
        until = time.monotonic() + self._lease
        for key, is_first, value in zip(keys, answers[::2], answers[1::2], strict=True):
            if is_first is True:
                self._claimed[key] = until
            claims.append(Claim(is_own=is_first is not None, known=self._unpack(key, value)))
        return claims

    async def release_many(self, keys: Sequence[bytes]) -> None:
        """See ``CodeCache``."""
        self._writes.extend((key, None) for key in keys if key in self._claimed)
        self._start_writing()

    async def close(self) -> None:
        """See ``CodeCache``."""
        await self._guard.close()

    def _accepts(self, value: bytes) -> bool:
        if len(value) > self._max_value_bytes:
            self._observer.failed("put", "too_long")
            return False
        if len(self._writes) >= self._max_writes:
            self._observer.failed("put", "backlog")
            return False
        return True

    def _start_writing(self) -> None:
        if self._writes and not self._writing and self._guard.is_available:
            self._writing = True
            self._guard.start(self._write())

    async def _write(self) -> None:
        try:
            while self._writes and self._guard.is_available:
                entries = [self._writes.popleft() for _ in range(min(len(self._writes), _WRITES_PER_PIPELINE))]
                await self._guard.call("put", partial(self._set, entries), limit=_WRITE_TIMEOUTS * self._timeout)
        finally:
            self._writing = False

    async def _values(self, keys: list[bytes]) -> Sequence[object]:
        if isinstance(self._client, RedisCluster):
            return await self._client.mget_nonatomic(keys)
        return await self._client.mget(keys)

    async def _set_leases(self, keys: Sequence[bytes]) -> Sequence[object]:
        pipeline = self._client.pipeline(transaction=False)
        for key in keys:
            pipeline.set(_lease_of(key), b"", nx=True, px=max(1, int(1000 * self._lease)))
            # GET after SET NX: a code is written before its lease ends, so it cannot be missed.
            pipeline.get(key)
        answers: Sequence[object] = await pipeline.execute(raise_on_error=False)
        return answers

    async def _set(self, entries: list[tuple[bytes, bytes | None]]) -> Sequence[object]:
        pipeline = self._client.pipeline(transaction=False)
        now = time.monotonic()
        for key, value in entries:
            if value is not None:
                pipeline.set(key, value, ex=self._ttl)
            # An expired lease may belong to another process by now.
            if self._claimed.pop(key, now) > now:
                pipeline.execute_command("UNLINK", _lease_of(key))  # a Cluster pipeline's unlink() does nothing
        answers: Sequence[object] = await pipeline.execute(raise_on_error=False)
        return answers

    async def _probe(self, key: bytes) -> Sequence[object]:
        """Sends the commands of look-ups, claims and writes."""
        await self._values([key])
        pipeline = self._client.pipeline(transaction=False)
        pipeline.get(key)
        pipeline.set(key, b"", nx=True, px=1000)
        pipeline.execute_command("UNLINK", key)
        answers: Sequence[object] = await pipeline.execute(raise_on_error=False)
        return answers

    def _unpack(self, key: bytes, value: object) -> CachedCode | None:
        if value is None or isinstance(value, Exception):  # GET of a key of another type is an error
            return None
        is_short = isinstance(value, bytes) and len(value) <= self._max_value_bytes
        entry = unpack_value(key, value) if is_short else None
        if entry is None:
            self._observer.failed("get", "value")
        return entry


def _lease_of(key: bytes) -> bytes:
    return key + LEASE
