"""What the cache of codes gains and costs: ``make bench-cache``.

- The hit path: requests a second for images that are known, over those of a bare FastAPI route that reads the same body and
  answers with a constant, on the same uvicorn; with the codes in memory, and in a Redis on this machine with nothing in
  front of it. The three take turns.
- One client: a hit beside a miss.
- Memory of an image in Redis, as MEMORY USAGE counts it; and a Redis that holds a million codes.
- Requests while something is wrong with Redis (``cache_faults``).
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from skimage import data

from service.cache import CachedCode, KeySpace
from service.cache.redis.connection import connect, disconnect
from service.cache.redis_cache import RedisCache
from service.cache.statistics import collect_statistics
from service.cache.values import pack_value
from tests.benchmarks.cache_faults import FaultRow, fault_rows
from tests.benchmarks.load import Request, capacity, h2load_version, require_h2load
from tests.benchmarks.report import OUTPUT, machine, markdown, write
from tests.benchmarks.served import DEFAULT_VARIANT, Endpoint, Model, jpegs, serve
from tests.service.cache.redis_server import RedisServer

CONNECTIONS = 64
IMAGES = 4  # of the hit path; each has a generator of its own
ROUNDS = 5
DISTINCT = 200  # images of one client
SYNTHETIC = 1_000_000
MGET_KEYS = 100
LOOKUP_DIGESTS = 1000
REDIS_ONLY = {"cache": "redis", "cache_front_entries": "0"}
GOALS = {
    "hit / bare route, in memory": ">= 0.75",
    "hit / bare route, Redis": ">= 0.6",
    "bytes of a key and its code": "<= 250",
    "failures under faults": "0",
    "wrong answers under faults": "0",
    "p99 under faults over no cache, ms (worst)": "<= 25",
}


@dataclass(frozen=True)
class HitPath:
    """Requests a second, by server, one for each round; and what the generators took of a core in the last."""

    rates: Mapping[str, Sequence[float]]
    generator_share: Mapping[str, float]

    def over_bare(self, server: str) -> float:
        """The median of the ratios within a round."""
        pairs = zip(self.rates[server], self.rates["bare route"], strict=True)
        return float(np.median([ours / bare for ours, bare in pairs]))


@dataclass(frozen=True)
class OneClient:
    """Milliseconds of one client's requests, medians and p95s."""

    miss: float
    miss_p95: float
    hit_memory: float
    hit_memory_p95: float
    hit_redis: float
    hit_redis_p95: float


@dataclass(frozen=True)
class Million:
    """A Redis that holds so many synthetic codes. ``bytes_a_code`` is what its memory grew by, for each.

    ``mget_ms`` is the median of looking up 100 through the cache's own client, one after the other; ``lookups`` are codes
    a second by ``POST /v1/codes:lookup``, 1,000 digests a request.
    """

    codes: int
    used_memory: int
    bytes_a_code: float
    mget_ms: float
    codes_by_mget: float
    codes_by_http: float


def hit_path(folder: Path, *, seconds: float) -> HitPath:
    """Bare route, memory and Redis in turn, all of them up at the same time."""
    images = jpegs(128, IMAGES)
    model = Model(DEFAULT_VARIANT)
    rates: dict[str, list[float]] = {}
    shares: dict[str, float] = {}
    with ExitStack() as stack:
        redis_server = stack.enter_context(redis(folder))
        _, memory = stack.enter_context(serve(model, cache="memory"))
        _, shared = stack.enter_context(serve(model, redis_url=redis_server.url, **REDIS_ONLY))
        answer = _known_answer([memory, shared], images)
        bare = stack.enter_context(bare_route(folder, answer))
        endpoints = {"bare route": bare, "in memory": memory, "Redis": shared}
        for _ in range(ROUNDS):
            for name, endpoint in endpoints.items():
                requests = [endpoint.request(image) for image in images]
                rate, load = capacity(requests, connections=CONNECTIONS, seconds=seconds, warm_up=1.0)
                rates.setdefault(name, []).append(rate)
                shares[name] = load.generator_share
                print(f"  {name}: {rate:.0f} requests/s", flush=True)
    return HitPath(rates, shares)


def _known_answer(endpoints: Sequence[Endpoint], images: Sequence[bytes]) -> bytes:
    """Makes the images known everywhere; gives an answer that says so."""
    with httpx.Client(timeout=60) as client:
        for endpoint in endpoints:
            for image in images:
                headers = {"Content-Type": endpoint.content_type}
                while b'"cached":true' not in (
                    answer := client.post(endpoint.url, content=image, headers=headers).content
                ):
                    pass
    return answer


@contextmanager
def bare_route(folder: Path, constant: bytes) -> Iterator[Endpoint]:
    """The route that does nothing, in a process of its own."""
    path = folder / "answer.json"
    path.write_bytes(constant)
    command = [sys.executable, "-m", "tests.benchmarks.bare_route", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        yield Endpoint(f"{url}/v1/encode", "image/jpeg", bytes, lambda answer: answer["data"][0]["tokens"])
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@contextmanager
def redis(folder: Path) -> Iterator[RedisServer]:
    """An empty Redis of its own, on a Unix socket."""
    place = Path(tempfile.mkdtemp(dir=folder))
    server = RedisServer(place)
    try:
        yield server.start()
    finally:
        server.kill()


def one_client(folder: Path) -> OneClient:
    """Each image once, which nobody has seen; then each again."""
    photograph = np.asarray(_pixels())
    images = [_jpeg(np.roll(photograph, 3 * number, axis=number % 2)) for number in range(DISTINCT)]
    model = Model(DEFAULT_VARIANT)
    times: dict[str, list[float]] = {}
    with redis(folder) as server:
        for name, settings in (("memory", {"cache": "memory"}), ("redis", {"redis_url": server.url, **REDIS_ONLY})):
            with serve(model, **settings) as (_, endpoint):
                times[f"miss_{name}"] = _times(endpoint, images, cached=False)
                times[f"hit_{name}"] = _times(endpoint, images, cached=True)
    miss = times["miss_memory"] + times["miss_redis"]
    return OneClient(
        *(_percentiles(miss)),
        *(_percentiles(times["hit_memory"])),
        *(_percentiles(times["hit_redis"])),
    )


def _percentiles(times: Sequence[float]) -> tuple[float, float]:
    return float(np.percentile(times, 50)), float(np.percentile(times, 95))


def _pixels() -> np.ndarray:
    return np.asarray(data.astronaut()[100:356, 100:356])


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((128, 128)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _times(endpoint: Endpoint, images: Sequence[bytes], *, cached: bool) -> list[float]:
    """Milliseconds of each request on one connection; those that the cache was to know and did not are left out."""
    url = httpx.URL(endpoint.url)
    connection = http.client.HTTPConnection(str(url.host), url.port)
    times = []
    for image in images:
        begun = time.perf_counter()
        connection.request("POST", url.path, image, {"Content-Type": endpoint.content_type})
        answer = json.loads(connection.getresponse().read())
        taken = time.perf_counter() - begun
        if answer["data"][0]["cached"] is cached:
            times.append(1000 * taken)
    connection.close()
    if len(times) < len(images) / 2:
        raise AssertionError(f"{len(times)} of {len(images)} images were {'hits' if cached else 'misses'}")
    return times


def bytes_of_a_key(folder: Path) -> tuple[float, float]:
    """Mean MEMORY USAGE of a key with its code, and of a new image, which takes two."""
    images = jpegs(128, 32)
    with redis(folder) as server, serve(Model(DEFAULT_VARIANT), redis_url=server.url, **REDIS_ONLY) as (_, endpoint):
        _known_answer([endpoint], images)

        async def mean_bytes() -> tuple[float, float]:
            client = connect(server.url, socket_timeout=10)
            [revision] = (await collect_statistics(client, "titok", sample=1000)).revisions
            await disconnect(client)
            return revision.mean_bytes, revision.bytes / revision.uploads

        return asyncio.run(mean_bytes())


def million(folder: Path, *, seconds: float) -> Million:
    """Random codes under random digests, in a Redis of their own, with the time to live that the service gives them."""
    chance = random.Random(0)
    with redis(folder) as server, serve(Model(DEFAULT_VARIANT), redis_url=server.url, **REDIS_ONLY) as (ready, _):
        [facts] = httpx.get(f"{ready.url}/v1/models").raise_for_status().json()["data"]
        space = KeySpace("titok", facts["id"], facts["revision"])
        digests = [chance.randbytes(32) for _ in range(SYNTHETIC)]
        with server.client() as client:
            before = client.info("memory")["used_memory"]
            for start in range(0, SYNTHETIC, 10_000):
                pipeline = client.pipeline(transaction=False)
                for digest in digests[start : start + 10_000]:
                    key = space.upload(digest)
                    pipeline.set(key, pack_value(key, CachedCode(chance.randbytes(48), (1024, 768))), ex=30 * 86_400)
                pipeline.execute()
            used = client.info("memory")["used_memory"]
        median, by_mget = asyncio.run(_mget(server.url, space, digests, seconds))
        sample = [digest.hex() for digest in chance.sample(digests, LOOKUP_DIGESTS)]
        request = Request(f"{ready.url}/v1/codes:lookup", json.dumps({"sha256": sample}).encode(), "application/json")
        rate, _ = capacity([request], connections=4, seconds=seconds, warm_up=1.0)
    return Million(
        codes=SYNTHETIC,
        used_memory=used,
        bytes_a_code=(used - before) / SYNTHETIC,
        mget_ms=median,
        codes_by_mget=by_mget,
        codes_by_http=LOOKUP_DIGESTS * rate,
    )


async def _mget(url: str, space: KeySpace, digests: Sequence[bytes], seconds: float) -> tuple[float, float]:
    cache = RedisCache(connect(url, socket_timeout=1.0), timeout=1.0)
    chance = random.Random(1)
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        keys = [space.upload(digest) for digest in chance.sample(digests, MGET_KEYS)]
        begun = time.perf_counter()
        if None in await cache.get_many(keys):
            raise AssertionError("a code that was written is not known")
        times.append(time.perf_counter() - begun)
    await cache.close()
    return 1000 * float(np.median(times)), MGET_KEYS * len(times) / sum(times)


def plot(hits: HitPath, one: OneClient, faults: Sequence[FaultRow]) -> Figure:
    """Requests a second of the hit path, one client's times, p99 by fault."""
    figure = Figure(figsize=(14, 4.5), layout="constrained")
    rates, client, late = figure.subplots(1, 3, width_ratios=[2, 2, 3])
    medians = {name: float(np.median(values)) for name, values in hits.rates.items()}
    bars = rates.bar(list(medians), list(medians.values()), color=["tab:gray", "tab:green", "tab:red"])
    rates.bar_label(bars, [f"{hits.over_bare(name):.2f}" for name in medians], fontsize=8)
    rates.set(ylabel="requests/s", title=f"hits, {CONNECTIONS} connections")
    values = [one.miss, one.hit_redis, one.hit_memory]
    bars = client.bar(["miss", "hit, Redis", "hit, memory"], values, color=["tab:blue", "tab:red", "tab:green"])
    client.bar_label(bars, fmt="%.2f", fontsize=8)
    client.set(ylabel="ms, median", title=f"one client, {DEFAULT_VARIANT}")
    late.barh([row.fault for row in faults], [row.p99 for row in faults])
    late.axvline(_without_cache(faults) + 25, color="black", linestyle="dashed", label="no cache + 25 ms")
    late.invert_yaxis()
    late.set(xlabel="ms, p99", title="while something is wrong with Redis")
    late.legend(loc="lower right", fontsize=8)
    return figure


def _without_cache(rows: Sequence[FaultRow]) -> float:
    """p99 in ms, the mean of before and after."""
    return float(np.mean([row.p99 for row in rows if row.fault.startswith("no cache")]))


def main() -> None:
    """Prints the tables and writes them, with JSON and a plot."""
    parser = argparse.ArgumentParser(description="What the cache of codes gains and costs.")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="for each figure of throughput and each turn of a fault"
    )
    parser.add_argument(
        "--parts", nargs="+", default=["hits", "rest"], choices=["hits", "rest"], help="hits alone: to tune"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    require_h2load()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hits = hit_path(folder, seconds=arguments.seconds)
        if "rest" not in arguments.parts:
            return
        one = one_client(folder)
        key_bytes, image_bytes = bytes_of_a_key(folder)
        many = million(folder, seconds=arguments.seconds)
        faults = fault_rows(folder, seconds=arguments.seconds)
    without = _without_cache(faults)
    struck = [row for row in faults if not row.fault.startswith("no cache")]
    figures = {
        "hit / bare route, in memory": hits.over_bare("in memory"),
        "hit / bare route, Redis": hits.over_bare("Redis"),
        "hit / miss, p50, in memory": one.hit_memory / one.miss,
        "hit / miss, p50, Redis": one.hit_redis / one.miss,
        "bytes of a key and its code": key_bytes,
        "bytes of a new image, which takes two keys": image_bytes,
        "failures under faults": sum(row.failures for row in struck),
        "wrong answers under faults": sum(row.wrong for row in struck),
        "p99 under faults over no cache, ms (worst)": max(row.p99 for row in struck) - without,
    }
    with tempfile.TemporaryDirectory() as name, redis(Path(name)) as server, server.client() as client:
        version = client.info("server")["redis_version"]
    document = {
        "machine": machine(
            "fastapi",
            "uvicorn",
            "redis",
            h2load=h2load_version().removeprefix("h2load "),
            redis_server=version,
            cores=str(len(os.sched_getaffinity(0))),
        ),
        "settings": {"connections": CONNECTIONS, "seconds": arguments.seconds, "rounds": ROUNDS, "images": IMAGES},
        "hits": {"rates": hits.rates, "generator_share": hits.generator_share},
        "one_client_ms": asdict(one),
        "million": asdict(many),
        "faults": [asdict(row) for row in faults],
        "figures": figures,
        "goals": GOALS,
    }
    tables = [
        markdown(["figure", "measured", "goal"], [[key, value, GOALS.get(key, "")] for key, value in figures.items()]),
        markdown(
            ["hits", "requests/s, by round", "over the bare route", "load generator, of a core"],
            [
                [
                    server,
                    ", ".join(f"{rate:.0f}" for rate in rates),
                    hits.over_bare(server),
                    hits.generator_share[server],
                ]
                for server, rates in hits.rates.items()
            ],
        ),
        markdown(
            ["one client, ms", "p50", "p95"],
            [
                ["miss", one.miss, one.miss_p95],
                ["hit, Redis", one.hit_redis, one.hit_redis_p95],
                ["hit, memory", one.hit_memory, one.hit_memory_p95],
            ],
        ),
        markdown(
            [
                "codes in Redis",
                "memory used",
                "bytes a code",
                "MGET of 100, ms (p50)",
                "codes/s, MGET",
                "codes/s, HTTP",
            ],
            [
                [
                    f"{many.codes:,}",
                    f"{many.used_memory:,}",
                    many.bytes_a_code,
                    many.mget_ms,
                    many.codes_by_mget,
                    many.codes_by_http,
                ]
            ],
        ),
        markdown(
            ["Redis", "requests", "failures", "wrong", "hits", "p50, ms", "p99, ms, by turn", "over no cache, ms"],
            [
                [
                    *(row.fault, row.requests, row.failures, row.wrong, row.hits, row.p50),
                    ", ".join(f"{p99:.1f}" for p99 in sorted(row.p99s)),
                    row.p99 - without,
                ]
                for row in faults
            ],
        ),
    ]
    write("cache", arguments.output, document=document, tables=tables, figure=plot(hits, one, faults))


if __name__ == "__main__":
    main()
