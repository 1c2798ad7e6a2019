"""Codes in Redis, shared by front ends and replicas.

::

    get_many ─> waiting ─┐                        put_many ─> to be written ─┐
    get_many ─> waiting ─┼─> one MGET at a time   put_many ─> to be written ─┴─> pipelines of SET, later
    get_many ─> waiting ─┘   for all that gathered

No request awaits Redis itself. A task of the cache's own does, and requests wait for what it learns: so a cancelled
request leaves no connection with half an answer on it, which the next caller would take for its own. While one round
trip is under way the next one gathers.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence

from redis.asyncio import RedisCluster

from service.cache.keys import LEASE
from service.cache.protocol import CachedCode, CacheObserver, Claim, NullCacheObserver
from service.cache.redis.circuit_breaker import CircuitBreaker
from service.cache.redis.connection import RedisClient, disconnect
from service.cache.redis.guard import TimedCalls
from service.cache.values import pack_value, unpack_value

__all__ = ["SOCKET_TIMEOUT", "RedisCache"]

SOCKET_TIMEOUT = 1.0
"""Seconds after which the client itself gives a connection up; nobody has waited for it for long."""

_KEYS_OF_A_ROUND = 1000
_WRITES_OF_A_PIPELINE = 256


class _Lookup:
    """Keys somebody waits for."""

    __slots__ = ("future", "keys")

    def __init__(self, keys: Sequence[bytes]) -> None:
        self.keys = keys
        self.future: asyncio.Future[list[CachedCode | None]] = asyncio.get_running_loop().create_future()

    def answer(self, found: list[CachedCode | None]) -> None:
        if not self.future.done():
            self.future.set_result(found)


class RedisCache:
    """See ``CodeCache``. ``timeout`` is the time of one round trip in seconds, a look-up takes two at most; ``ttl`` the
    life of an entry in seconds, None for ever; ``lease`` that of a claim, 0 for none. Values of more than
    ``max_value_bytes`` are neither written nor read, and at most ``max_writes`` wait to be written.
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
        self._timeout = timeout
        self._ttl = ttl
        self._lease = lease
        self._claimed: dict[bytes, float] = {}
        self._max_value_bytes = max_value_bytes
        self._max_writes = max_writes
        self._observer = observer or NullCacheObserver()
        self._breaker = CircuitBreaker(pause=breaker_pause, on_change=self._observer.breaker)
        self._calls = TimedCalls(self._breaker, self._observer)
        self._lookups: deque[_Lookup] = deque()
        self._writes: deque[tuple[bytes, bytes | None]] = deque()
        self._reading = self._writing = False

    async def get_many(self, keys: Sequence[bytes]) -> list[CachedCode | None]:
        """See ``CodeCache``. Nothing is known while Redis does not answer."""
        if not keys or not self._is_closed():
            return [None] * len(keys)
        lookup = _Lookup(keys)
        self._lookups.append(lookup)
        if not self._reading:
            self._reading = True
            self._calls.begin(self._read())
        return await lookup.future

    async def put_many(self, entries: Sequence[tuple[bytes, CachedCode]]) -> None:
        """See ``CodeCache``. Written later, by a task of the cache's own."""
        is_closed = self._is_closed()
        for key, entry in entries:
            value = pack_value(key, entry)
            if not is_closed:
                self._claimed.pop(key, None)
            elif len(value) > self._max_value_bytes:
                self._observer.failed("put", "too_long")
                self._claimed.pop(key, None)
            elif len(self._writes) >= self._max_writes:
                self._observer.failed("put", "backlog")
                self._claimed.pop(key, None)
            else:
                self._writes.append((key, value))
        self._begin_to_write()

    async def claim_many(self, keys: Sequence[bytes]) -> list[Claim]:
        """See ``CodeCache``. A claim is a key of its own that only the first can set."""
        own = [Claim(is_own=True)] * len(keys)
        if not self._lease or not self._is_closed():
            return own
        answers = await self._calls.call("claim", self._set_leases(keys), self._timeout)
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
        self._begin_to_write()

    async def close(self) -> None:
        """See ``CodeCache``."""
        await self._calls.close(2 * SOCKET_TIMEOUT)
        await disconnect(self._client)

    # --- the tasks ---------------------------------------------------------------------------------------------------

    def _is_closed(self) -> bool:
        """Whether the circuit is closed; if it is not, a probe may be due."""
        if self._breaker.wants_probe():
            self._calls.begin(self._probe())
        return self._breaker.state == "closed"

    def _begin_to_write(self) -> None:
        if self._writes and not self._writing:
            self._writing = True
            self._calls.begin(self._write())

    async def _read(self) -> None:
        try:
            while self._lookups:
                taken: list[_Lookup] = []
                count = 0
                while self._lookups and (not taken or count + len(self._lookups[0].keys) <= _KEYS_OF_A_ROUND):
                    taken.append(self._lookups.popleft())
                    count += len(taken[-1].keys)
                keys = [key for lookup in taken for key in lookup.keys]
                found: list[CachedCode | None] = [None] * count
                try:
                    # If the circuit has opened since the question, it has waited enough.
                    if self._breaker.state == "closed":
                        values = await self._calls.call("get", self._values(keys), self._timeout)
                        if values is not None:
                            found = list(map(self._unpack, keys, values))
                finally:
                    start = 0
                    for lookup in taken:
                        lookup.answer(found[start : start + len(lookup.keys)])
                        start += len(lookup.keys)
        finally:
            self._reading = False
            while self._lookups:
                lookup = self._lookups.popleft()
                lookup.answer([None] * len(lookup.keys))

    async def _write(self) -> None:
        try:
            while self._writes:
                entries = [self._writes.popleft() for _ in range(min(len(self._writes), _WRITES_OF_A_PIPELINE))]
                if self._breaker.state != "closed":
                    for key, _ in entries:
                        self._claimed.pop(key, None)
                else:
                    # Nobody waits for it, so it may take a little longer.
                    answers = await self._calls.call("put", self._set(entries), 10 * self._timeout)
                    for answer in answers or ():
                        if isinstance(answer, Exception):
                            self._observer.failed("put", "response")
        finally:
            self._writing = False

    async def _probe(self) -> None:
        await self._calls.call("probe", self._client.ping(), self._timeout)

    async def _values(self, keys: list[bytes]) -> Sequence[object]:
        if isinstance(self._client, RedisCluster):
            return await self._client.mget_nonatomic(keys)
        return await self._client.mget(keys)

    async def _set_leases(self, keys: Sequence[bytes]) -> Sequence[object]:
        pipeline = self._client.pipeline(transaction=False)
        for key in keys:
            pipeline.set(_lease_of(key), b"", nx=True, px=max(1, int(1000 * self._lease)))
            # In this order: a code that is written before its lease ends cannot be missed.
            pipeline.get(key)
        answers: Sequence[object] = await pipeline.execute(raise_on_error=False)
        return answers

    async def _set(self, entries: list[tuple[bytes, bytes | None]]) -> Sequence[object]:
        pipeline = self._client.pipeline(transaction=False)
        now = time.monotonic()
        for key, value in entries:
            if value is not None:
                pipeline.set(key, value, ex=self._ttl)
            # Once it has run out, the lease may be another's.
            if self._claimed.pop(key, now) > now:
                pipeline.execute_command("UNLINK", _lease_of(key))  # unlink() of a Cluster's pipeline queues nothing
        answers: Sequence[object] = await pipeline.execute(raise_on_error=False)
        return answers

    def _unpack(self, key: bytes, value: object) -> CachedCode | None:
        if value is None or isinstance(value, Exception):  # of a key that holds another type, GET says so
            return None
        short = isinstance(value, bytes) and len(value) <= self._max_value_bytes
        entry = unpack_value(key, value) if short else None
        if entry is None:
            self._observer.failed("get", "value")
        return entry


def _lease_of(key: bytes) -> bytes:
    return key + LEASE
