"""Requests during Redis faults: the rows of a table in ``tests.benchmarks.cache``.

One service without a cache, one with a Redis that is killed, paused, filled and corrupted, one with a Redis with 200 ms
latency. All get the same load: images in rotation at a fixed rate; each answer is compared with that of the service
without a cache. Latency counts from the time a request was due. Each row is run three times, and its p99 is the median of
three: a pause of the machine of a tenth of a second spoils the p99 of a single run.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import redis

from service.cache import CachedCode
from service.cache.values import pack_value
from tests.benchmarks.load import capacity
from tests.benchmarks.served import DEFAULT_VARIANT, Endpoint, Model, jpegs, serve
from tests.service.cache.redis_server import RedisServer
from tests.service.cache.test_redis_faults import delayed

__all__ = ["FaultRow", "fault_rows"]

IMAGES = 32
LEAST_REQUESTS = 200  # of a row, however slow the machine: fewer have no p99
LOAD = 0.4  # of what the service can do without a cache
FAULT_AT = 1 / 3  # of a row's time; what is wrong from the beginning has been so before
DELAY = 0.2
TURNS = 3
SETTINGS = {"cache": "redis", "cache_front_entries": "0"}  # nothing in front of it

Fault = Callable[[RedisServer], None]
Step = Callable[[], None]
# Seconds, whether the answer was right (None: there was none), and whether the cache knew it; for each request.
_Turn = list[tuple[float, bool | None, bool]]


@dataclass(frozen=True)
class FaultRow:
    """Requests of all turns. ``wrong`` answers have another image's ids; ``hits`` are answers that the cache knew; latencies
    in ms, one for each turn.
    """

    fault: str
    requests: int
    failures: int
    wrong: int
    hits: int
    p50s: Sequence[float]
    p99s: Sequence[float]

    @property
    def p50(self) -> float:
        """Of the turn in the middle."""
        return float(np.median(self.p50s))

    @property
    def p99(self) -> float:
        """Of the turn in the middle."""
        return float(np.median(self.p99s))


def fault_rows(folder: Path, *, seconds: float) -> list[FaultRow]:
    """All rows, the first and the last without a cache; each turn of one takes ``seconds``."""
    model = Model(DEFAULT_VARIANT)
    images = jpegs(128, IMAGES)
    rows: list[FaultRow] = []
    with serve(model) as (_, plain):
        truth = plain.encode(images)
        rate, _ = capacity([plain.request(images[0])], connections=8, seconds=seconds / 2, warm_up=1.0)
        load = _Load(images, truth.tolist(), rate=LOAD * rate, seconds=seconds)

        def note(
            fault: str, endpoint: Endpoint, before: Step = _rest, strike: Step = _rest, after: Step = _rest
        ) -> None:
            turns: list[_Turn] = []
            for _ in range(TURNS):
                before()
                turns.append(load.run(endpoint, strike))
                after()
            rows.append(_row(fault, turns))
            print(f"  {rows[-1]}", flush=True)

        note("no cache", plain)
        with _redis(folder / "one") as server, serve(model, redis_url=server.url, **SETTINGS) as (_, cached):
            note("not started", cached)
            server.start()
            for fault, strike, after in _FAULTS:
                note(fault, cached, partial(load.until_known, cached), partial(strike, server), partial(after, server))
        with _redis(folder / "far") as server:
            server.start()
            asyncio.run(_far(server, folder, model, note))
        note("no cache, again", plain)
    return rows


async def _far(server: RedisServer, folder: Path, model: Model, note: Callable[[str, Endpoint], None]) -> None:
    """A Redis behind a proxy that takes its time."""
    async with delayed(server, DELAY, folder) as url:

        def run() -> None:
            with serve(model, redis_url=url, **SETTINGS) as (_, endpoint):
                note(f"{1000 * DELAY:.0f} ms away", endpoint)

        await asyncio.to_thread(run)


@contextmanager
def _redis(folder: Path) -> Iterator[RedisServer]:
    folder.mkdir()
    server = RedisServer(folder)
    try:
        yield server
    finally:
        server.kill()


class _Load:
    """Requests at a fixed rate, each answer checked."""

    def __init__(self, images: Sequence[bytes], truth: Sequence[list[int]], *, rate: float, seconds: float) -> None:
        self._images = images
        self._truth = truth
        self._rate = rate
        self._seconds = max(seconds, LEAST_REQUESTS / rate)

    def run(self, endpoint: Endpoint, strike: Step) -> _Turn:
        """One turn; ``strike`` is called in the midst of it."""
        return asyncio.run(self._run(endpoint, strike))

    async def _run(self, endpoint: Endpoint, strike: Step) -> _Turn:
        count = round(self._rate * self._seconds)
        outcomes: _Turn = []
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as client:
            await client.get(endpoint.url)  # what happens once, such as reading certificates
            begun = time.perf_counter() + 0.1

            async def request(number: int) -> None:
                due = begun + number / self._rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                place = number % len(self._images)
                right, hit = await self._ask(client, endpoint, place)
                outcomes.append((time.perf_counter() - due, right, hit))

            async def fail() -> None:
                await asyncio.sleep(FAULT_AT * self._seconds)
                await asyncio.to_thread(strike)

            await asyncio.gather(fail(), *(request(number) for number in range(count)))
        return outcomes

    def until_known(self, endpoint: Endpoint) -> None:
        """Waits until the cache knows all images: Redis is whole again, and has been found so."""

        async def ask() -> None:
            async with httpx.AsyncClient(timeout=60) as client:
                unknown = set(range(len(self._images)))
                while unknown:
                    for place in list(unknown):
                        if (await self._ask(client, endpoint, place))[1]:
                            unknown.discard(place)

        asyncio.run(ask())

    async def _ask(self, client: httpx.AsyncClient, endpoint: Endpoint, place: int) -> tuple[bool | None, bool]:
        """Whether the answer is right (None: there is none), and whether the cache knew it."""
        try:
            answer = await client.post(
                endpoint.url, content=self._images[place], headers={"Content-Type": endpoint.content_type}
            )
        except httpx.HTTPError:
            return None, False
        if answer.status_code != httpx.codes.OK:
            return None, False
        [image] = answer.json()["data"]
        return image["tokens"] == self._truth[place], image["cached"]


def _row(fault: str, turns: Sequence[_Turn]) -> FaultRow:
    outcomes = [outcome for turn in turns for outcome in turn]
    times = [[1000 * taken for taken, *_ in turn] for turn in turns]
    return FaultRow(
        fault,
        requests=len(outcomes),
        failures=sum(right is None for _, right, _ in outcomes),
        wrong=sum(right is False for _, right, _ in outcomes),
        hits=sum(hit for *_, hit in outcomes),
        p50s=[float(np.percentile(turn, 50)) for turn in times],
        p99s=[float(np.percentile(turn, 99)) for turn in times],
    )


def _rest() -> None:
    pass


def _nothing(_: RedisServer) -> None:
    pass


def _revive(server: RedisServer) -> None:
    server.kill()
    server.start()


def _full(policy: str) -> Fault:
    def fill(server: RedisServer) -> None:
        with server.client() as client:
            client.config_set("maxmemory-policy", policy)
            client.config_set("maxmemory", client.info("memory")["used_memory"])

    return fill


def _falsify(value_of: Callable[[redis.Redis, bytes, bytes], None]) -> Fault:
    def falsify(server: RedisServer) -> None:
        with server.client() as client:
            for key in client.scan_iter():
                value = client.get(key)
                if isinstance(value, bytes):
                    value_of(client, key, value)

    return falsify


def _as_list(client: redis.Redis, key: bytes, value: bytes) -> None:
    client.delete(key)
    client.rpush(key, value)


def _cut(client: redis.Redis, key: bytes, value: bytes) -> None:
    client.set(key, value[: len(value) // 2])


def _out_of_range(client: redis.Redis, key: bytes, value: bytes) -> None:
    # Every 12 bits are an id of 4,096; what no code of this tokenizer can be is a longer one, under its right digest.
    client.set(key, pack_value(key, CachedCode(value[-48:] + b"\xff" * 3, (0xFFFF, 1))))


def _of_another(client: redis.Redis, key: bytes, value: bytes) -> None:
    other = client.getset("benchmark:last", value)
    if isinstance(other, bytes):
        client.set(key, other)


_FAULTS: Sequence[tuple[str, Fault, Fault]] = (
    ("none", _nothing, _nothing),
    ("killed", RedisServer.kill, _revive),
    ("paused", lambda server: server.signal(signal.SIGSTOP), lambda server: server.signal(signal.SIGCONT)),
    ("restarted empty", _revive, _nothing),
    ("full, no eviction", _full("noeviction"), _revive),
    ("full, eviction", _full("allkeys-lru"), _revive),
    ("another type", _falsify(_as_list), _revive),
    ("values cut", _falsify(_cut), _revive),
    ("values out of range", _falsify(_out_of_range), _revive),
    ("values of other images", _falsify(_of_another), _revive),
)
