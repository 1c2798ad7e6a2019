"""Cache hits over HTTP: requests per second relative to a bare route, and latencies of one client. Part of
``make bench-cache``.
"""

from __future__ import annotations

import http.client
import io
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from PIL import Image
from skimage import data

from tests.benchmarks.load import capacity
from tests.benchmarks.served import DEFAULT_VARIANT, Endpoint, Model, jpegs, serve
from tests.service.cache.redis_server import RedisServer

CONNECTIONS = 64
IMAGES = 4  # of the hit path; each has its own load generator
ROUNDS = 5
DISTINCT = 200  # images of one client
REDIS_ONLY = {"cache": "redis", "cache_front_entries": "0"}


@dataclass(frozen=True)
class HitPath:
    """Requests per second of each server in each round, and the load generators' share of a core in the last."""

    rates: Mapping[str, Sequence[float]]
    generator_share: Mapping[str, float]

    def over_bare(self, server: str) -> float:
        """The median of the ratios within a round."""
        pairs = zip(self.rates[server], self.rates["bare route"], strict=True)
        return float(np.median([ours / bare for ours, bare in pairs]))


@dataclass(frozen=True)
class OneClient:
    """Latencies of one client in milliseconds, medians and p95s."""

    miss: float
    miss_p95: float
    hit_memory: float
    hit_memory_p95: float
    hit_redis: float
    hit_redis_p95: float


def hit_path(folder: Path, *, seconds: float) -> HitPath:
    """Measures bare route, memory and Redis in alternating rounds, with all servers running."""
    images = jpegs(128, IMAGES)
    model = Model(DEFAULT_VARIANT)
    rates: dict[str, list[float]] = {}
    shares: dict[str, float] = {}
    with ExitStack() as stack:
        redis_server = stack.enter_context(redis(folder))
        _, memory = stack.enter_context(serve(model, cache="memory"))
        _, shared = stack.enter_context(serve(model, redis_url=redis_server.url, **REDIS_ONLY))
        answer = make_known([memory, shared], images)
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


def make_known(endpoints: Sequence[Endpoint], images: Sequence[bytes]) -> bytes:
    """Fills the caches with the images; returns an answer from a cache."""
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
    """Starts the bare route in a separate process."""
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
    """Starts an empty Redis on a Unix socket."""
    server = RedisServer(Path(tempfile.mkdtemp(dir=folder)))
    try:
        yield server.start()
    finally:
        server.kill()


def one_client(folder: Path) -> OneClient:
    """Sends each image once, as a miss, then again, as a hit."""
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
    return OneClient(*_percentiles(miss), *_percentiles(times["hit_memory"]), *_percentiles(times["hit_redis"]))


def _percentiles(times: Sequence[float]) -> tuple[float, float]:
    return float(np.percentile(times, 50)), float(np.percentile(times, 95))


def _pixels() -> np.ndarray:
    return np.asarray(data.astronaut()[100:356, 100:356])


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((128, 128)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _times(endpoint: Endpoint, images: Sequence[bytes], *, cached: bool) -> list[float]:
    """Milliseconds of each request on one connection, without unexpected hits or misses."""
    url = httpx.URL(endpoint.url)
    connection = http.client.HTTPConnection(str(url.host), url.port)
    times = []
    for image in images:
        started = time.perf_counter()
        connection.request("POST", url.path, image, {"Content-Type": endpoint.content_type})
        answer = json.loads(connection.getresponse().read())
        taken = time.perf_counter() - started
        if answer["data"][0]["cached"] is cached:
            times.append(1000 * taken)
    connection.close()
    if len(times) < len(images) / 2:
        raise AssertionError(f"{len(times)} of {len(images)} images were {'hits' if cached else 'misses'}")
    return times
