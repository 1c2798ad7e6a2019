"""A cache of codes in Redis, shared by front ends and replicas.

::

    get_many ─> waiting ─┐                        put_many ─> to be written ─┐
    get_many ─> waiting ─┼─> one MGET at a time   put_many ─> to be written ─┴─> pipelines of SET, later
    get_many ─> waiting ─┘   for all of them

Requests never await Redis itself: background tasks do, and requests await their results. So a cancelled request never
leaves a connection with an unread answer, which the next command would take for its own. Look-ups that arrive during one
round trip share the next one.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from itertools import islice

from redis.asyncio import RedisCluster

from service.cache.keys import LEASE
from service.cache.protocol import CachedCode, CacheObserver, Claim, CodeCache
from service.cache.redis.connection import RedisClient
from service.cache.redis.guard import RedisGuard
from service.cache.values import pack_value, unpack_value

_KEYS_PER_ROUND_TRIP = 1000
_WRITES_PER_PIPELINE = 256


class _Lookup:
    """Keys that a request waits for."""

    __slots__ = ("future", "keys")

    def __init__(self, keys: Sequence[bytes]) -> None:
        self.keys = keys
        self.future: asyncio.Future[list[CachedCode | None]] = asyncio.get_running_loop().create_future()

    def resolve(self, found: list[CachedCode | None]) -> None:
        if not self.future.done():
            self.future.set_result(found)


class RedisCache(CodeCache):
    """See ``CodeCache``.

    A round trip may take ``timeout`` seconds, and a look-up waits for at most two. Entries expire after ``ttl`` seconds
    (None: never), claims after ``lease`` (0: no claims are made). Values longer than ``max_value_bytes`` are neither
    written nor read, and at most ``max_writes`` wait to be written.
    """

    def __init__(
        self,
        client: RedisClient,
        *,
        timeout: float = 0.01,
        ttl: int | None = None,
        lease: float = 2.0,
        max_value_bytes: int = 4096,
        max_writes: int = 10_000,
        observer: CacheObserver | None = None,
        breaker_pause: float = 1.0,
    ) -> None:
        self._client = client
        self._ttl = ttl
        self._lease = lease
        self._claimed: dict[bytes, float] = {}
        self._max_value_bytes = max_value_bytes
        self._max_writes = max_writes
        self._observer = observer or CacheObserver()
        self._guard = RedisGuard(client, timeout=timeout, observer=self._observer, breaker_pause=breaker_pause)
        self._lookups: deque[_Lookup] = deque()
        self._writes: deque[tuple[bytes, bytes | None]] = deque()
        self._reading = self._writing = False

    async def get_many(self, keys: Sequence[bytes]) -> list[CachedCode | None]:
        """See ``CodeCache``. All are unknown while Redis does not answer."""
        if not keys or not self._guard.is_available():
            return [None] * len(keys)
        lookup = _Lookup(keys)
        self._lookups.append(lookup)
        if not self._reading:
            self._reading = True
            self._guard.start(self._read())
        return await lookup.future

    async def put_many(self, entries: Sequence[tuple[bytes, CachedCode]]) -> None:
        """See ``CodeCache``. A background task writes them later."""
        is_available = self._guard.is_available()
        for key, entry in entries:
            value = pack_value(key, entry)
            if is_available and self._accepts(value):
                self._writes.append((key, value))
            else:
                self._claimed.pop(key, None)
        self._start_writing()

    async def claim_many(self, keys: Sequence[bytes]) -> list[Claim]:
        """See ``CodeCache``. A claim is a key in Redis that only the first process can set."""
        own = [Claim(is_own=True)] * len(keys)
        if not self._lease or not self._guard.is_available():
            return own
        answers = await self._guard.call("claim", self._set_leases(keys))
        if answers is None:
            return own
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
        if self._writes and not self._writing:
            self._writing = True
            self._guard.start(self._write())

    async def _read(self) -> None:
        """Answers look-ups, as many as fit in a round trip at a time, until none is left."""
        taken: list[_Lookup] = []
        try:
            while self._lookups:
                taken = self._take_lookups()
                keys = [key for lookup in taken for key in lookup.keys]
                # The circuit may have opened while these waited.
                values = await self._guard.call("get", self._values(keys)) if self._guard.is_available() else None
                codes = iter([None] * len(keys) if values is None else list(map(self._unpack, keys, values)))
                for lookup in taken:
                    lookup.resolve(list(islice(codes, len(lookup.keys))))
        finally:
            self._reading = False
            for lookup in (*taken, *self._lookups):  # if this task was cancelled
                lookup.resolve([None] * len(lookup.keys))
            self._lookups.clear()

    def _take_lookups(self) -> list[_Lookup]:
        taken = [self._lookups.popleft()]
        count = len(taken[0].keys)
        while self._lookups and (count := count + len(self._lookups[0].keys)) <= _KEYS_PER_ROUND_TRIP:
            taken.append(self._lookups.popleft())
        return taken

    async def _write(self) -> None:
        try:
            while self._writes:
                entries = [self._writes.popleft() for _ in range(min(len(self._writes), _WRITES_PER_PIPELINE))]
                if not self._guard.is_available():
                    for key, _ in entries:
                        self._claimed.pop(key, None)
                    continue
                # No request waits for a write, so it may take longer.
                answers = await self._guard.call("put", self._set(entries), timeout_factor=10)
                for answer in answers or ():
                    if isinstance(answer, Exception):
                        self._observer.failed("put", "response")
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
