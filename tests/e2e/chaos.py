"""Thousands of requests, good and bad, impatient, abandoned and large, while a fault is caused every few seconds.

Used by ``test_chaos.py``, and alone for the long run::

    python -m tests.e2e.chaos --requests 10000 --fault-every 2

Every good request must be answered rightly, or refused with 429, 503 or 504; every bad one with a problem of its own;
nothing may hang, or be cut off unless its front end was killed. Afterwards the queues are empty, the next request is
answered, and no memory, thread or descriptor of a front end has gone with any of it.

Lateness is what passed between a request's deadline and its answer. On a busy machine a part of it is the client's own:
how late the client's event loop was at the time is measured beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from service.cache.redis.connection import CONNECTIONS
from tests.e2e.chaos_faults import Faults
from tests.e2e.conftest import Server, end, lines, start_server
from tests.service.cache.redis_server import RedisServer

__all__ = ["SETTINGS", "Outcome", "Sample", "run_chaos", "samples_of"]

# Codes expire at once, so that Redis is read and written and images are still computed; one front end outlives the other.
SETTINGS = {"cache": "redis", "cache_ttl": "1", "cache_front_entries": "0", "front_ends": "2"}

CLIENTS = 32
HANG_SECONDS = 120.0
PAUSE_SECONDS = 0.25
REFUSALS = (429, 503, 504)
RETRIED = (429, 503)
ANSWERS_BETWEEN_FAULTS = 20
REQUEST_TIMEOUT_MS = 30_000
LATE_SECONDS = 0.25
PROBE_SECONDS = 0.02
MEMORY_FACTOR = 1.5
POOLED_DESCRIPTORS = int(SETTINGS["front_ends"]) * CONNECTIONS  # connections to Redis
AT_REST = {"queued_images": 0, "queued_bytes": 0, "active_images": 0}


@dataclass(frozen=True)
class Sample:
    """A request body, and what a right answer to it holds: the ids; or the statuses of a right refusal."""

    route: str
    content_type: str
    body: bytes
    tokens: list[list[int]] | None = None
    statuses: tuple[int, ...] = (200,)


@dataclass
class Outcome:
    """What came of a run. ``wrong`` describes every request that ended as none may."""

    requests: int
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    late: list[dict[str, Any]] = field(default_factory=list)
    loop_lag_ms: float = 0.0
    lanes: dict[str, dict[str, int]] = field(default_factory=dict)
    memory_mib: list[float] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def is_back(self) -> bool:
        """Whether memory, threads and descriptors are those of the beginning, about."""
        return (
            self.memory_mib[-1] < MEMORY_FACTOR * max(self.memory_mib[:3])
            and self.threads[-1] <= max(self.threads[:3]) + 2
            and self.descriptors[-1] <= self.descriptors[0] + POOLED_DESCRIPTORS
        )


def samples_of(url: str, images: Sequence[tuple[str, bytes]]) -> tuple[list[Sample], list[Sample]]:
    """Good samples, with the answers that a service at rest gives to them, and bad ones. Images come with their types."""
    json_type = "application/json"
    good, bad = [], []
    with httpx.Client(base_url=url, timeout=HANG_SECONDS) as client:

        def ask(route: str, content_type: str, body: bytes) -> Any:
            answer = client.post(route, content=body, headers={"Content-Type": content_type, "Accept": json_type})
            return answer.raise_for_status().json()

        for content_type, file in images:
            tokens = [item["tokens"] for item in ask("/v1/encode", content_type, file)["data"]]
            good += [Sample("/v1/encode", content_type, file, tokens)] * 3
            bad.append(Sample("/v1/encode", content_type, file[: len(file) // 2], statuses=(400,)))
        for seed in range(4):
            body = json.dumps({"class": seed, "n": 2, "seed": seed, "steps": 4}).encode()
            made = [item["tokens"] for item in ask("/v1/generate", json_type, body)["data"]]
            good.append(Sample("/v1/generate", json_type, body, made))
            decode = json.dumps({"tokens": made}).encode()
            good.append(Sample("/v1/decode", json_type, decode))
    bad += [
        Sample("/v1/encode", "image/png", b"", statuses=(400, 422)),
        Sample("/v1/encode", "image/png", os.urandom(4096), statuses=(400, 415)),
        Sample("/v1/encode", "text/plain", b"an image", statuses=(415,)),
        Sample("/v1/decode", json_type, b'{"tokens": [[1, 2, 4096]]}', statuses=(422,)),
        Sample("/v1/decode", json_type, b"{", statuses=(400,)),
        Sample("/v1/generate", json_type, b'{"class": "no such class"}', statuses=(404,)),
        Sample("/v1/generate", json_type, b'{"class": 0, "n": 10000}', statuses=(413, 422)),
    ]
    return good, bad


@dataclass(frozen=True)
class Answer:
    """When an answer came, on ``time.monotonic``, and to what."""

    route: str
    status: int
    request_id: str
    timeout_ms: int
    begun: float
    ended: float
    met_front_end_outage: bool

    @property
    def late_seconds(self) -> float:
        return self.ended - self.begun - self.timeout_ms / 1000


def large_images() -> list[tuple[str, bytes]]:
    """Files of 40 megapixels and a few kB, with their types."""
    image, files = Image.new("L", (8000, 5000), 77), []
    for name, options in (("PNG", {"compress_level": 1}), ("WEBP", {"lossless": True, "quality": 0, "method": 0})):
        buffer = io.BytesIO()
        image.save(buffer, name, **options)
        files.append((f"image/{name.lower()}", buffer.getvalue()))
    return files


class _Chaos:
    def __init__(
        self, server: Server, faults: Faults, *, requests: int, fault_every: float, seed: int, jpegs: Sequence[bytes]
    ) -> None:
        self._server = server
        self._faults = faults
        self._fault_every = fault_every
        self._random = random.Random(seed)
        self._good, self._bad = samples_of(server.url, [("image/jpeg", jpeg) for jpeg in jpegs])
        self._large, _ = samples_of(server.url, large_images())
        self._left = requests
        self._answers: list[Answer] = []
        self._lags: list[tuple[float, float]] = []
        self.outcome = Outcome(requests, faults=faults.caused)

    async def run(self) -> None:
        begun = time.monotonic()
        limits = httpx.Limits(max_connections=2 * CLIENTS, max_keepalive_connections=CLIENTS)
        async with httpx.AsyncClient(base_url=self._server.url, timeout=HANG_SECONDS, limits=limits) as client:
            beside = [asyncio.create_task(self._cause_faults()), asyncio.create_task(self._probe())]
            await asyncio.gather(*(self._client(client) for _ in range(CLIENTS)))
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
        self.outcome.seconds = time.monotonic() - begun
        self.outcome.loop_lag_ms = 1000 * max((lag for _, lag in self._lags), default=0.0)
        self.outcome.late = [
            vars(answer) | {"late_seconds": answer.late_seconds, "loop_lag_seconds": self._loop_lag_during(answer)}
            for answer in self._answers
            if answer.late_seconds > LATE_SECONDS
        ]

    async def _client(self, client: httpx.AsyncClient) -> None:
        while self._left > 0 or not self._faults.all_caused():
            self._left -= 1
            if self._left % max(1, self.outcome.requests // 10) == 0:
                await asyncio.to_thread(self.note_resources)
            kind = self._random.random()
            if kind < 0.15:
                await self._ask(client, self._random.choice(self._bad))
            elif kind < 0.45:
                samples = self._large if kind < 0.20 else self._good
                await self._ask(client, self._random.choice(samples), timeout_ms=self._random.randint(100, 2000))
            elif kind < 0.60:
                samples = self._large if kind < 0.48 else self._good
                await self._leave(client, self._random.choice(samples), self._random.uniform(0.0, 0.2))
            else:
                await self._ask(client, self._random.choice(self._good))

    async def _leave(self, client: httpx.AsyncClient, sample: Sample, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._ask(client, sample)
        except TimeoutError:
            self.outcome.statuses["left"] += 1

    async def _ask(self, client: httpx.AsyncClient, sample: Sample, timeout_ms: int = REQUEST_TIMEOUT_MS) -> None:
        headers = {
            "Content-Type": sample.content_type,
            "Accept": "application/json",
            "X-Request-Timeout-Ms": str(timeout_ms),
        }
        begun = time.monotonic()
        try:
            answer = await client.post(sample.route, content=sample.body, headers=headers)
        except httpx.HTTPError as error:
            if isinstance(error, httpx.TransportError) and self._faults.met_front_end_outage(begun):
                self.outcome.statuses["cut off by a killed front end"] += 1
            else:
                self.outcome.wrong.append(f"{sample.route}: {error!r}")
            return
        self.outcome.statuses[str(answer.status_code)] += 1
        self._answers.append(
            Answer(
                sample.route,
                answer.status_code,
                answer.headers.get("x-request-id", ""),
                timeout_ms,
                begun,
                time.monotonic(),
                self._faults.met_front_end_outage(begun),
            )
        )
        if answer.status_code in RETRIED:  # or refusals would use up the run while a worker starts
            self._left += 1
            await asyncio.sleep(PAUSE_SECONDS)
        if not _is_right(answer, sample):
            self.outcome.wrong.append(f"{sample.route}: {answer.status_code} {answer.text[:300]}")

    async def _cause_faults(self) -> None:
        while True:
            answered = self.outcome.statuses["200"]
            await asyncio.sleep(self._fault_every)
            while self.outcome.statuses["200"] < answered + ANSWERS_BETWEEN_FAULTS:  # noqa: ASYNC110
                await asyncio.sleep(PAUSE_SECONDS)
            await asyncio.to_thread(self._server.wait_until_ready)
            await self._faults.cause_next()

    async def _probe(self) -> None:
        """Measures how late this event loop is."""
        while True:
            due = time.monotonic() + PROBE_SECONDS
            await asyncio.sleep(PROBE_SECONDS)
            self._lags.append((due, time.monotonic() - due))

    def _loop_lag_during(self, answer: Answer) -> float:
        return max((lag for due, lag in self._lags if due < answer.ended and due + lag > answer.begun), default=0.0)

    def _children(self, kind: str) -> list[Any]:
        children: list[Any] = self._server.health()["processes"]
        return [child for child in children if child["name"].startswith(kind) and child["pid"]]

    def note_resources(self) -> None:
        """Of all front ends together."""
        folders = [Path(f"/proc/{child['pid']}") for child in self._children("front end")]
        status = [dict(line.split(":", 1) for line in (f / "status").read_text().splitlines()) for f in folders]
        self.outcome.memory_mib.append(sum(int(one["VmRSS"].split()[0]) for one in status) / 1024)
        self.outcome.threads.append(sum(int(one["Threads"]) for one in status))
        self.outcome.descriptors.append(sum(map(_descriptors, folders)))


def _descriptors(process: Path) -> int:
    """Without those of shared memory: its blocks are a bounded pool, made when they are needed."""
    count = 0
    for descriptor in (process / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            count += not str(descriptor.readlink()).startswith("/memfd:")
    return count


def _is_right(answer: httpx.Response, sample: Sample) -> bool:
    if answer.status_code in REFUSALS:
        return bool(answer.headers["content-type"] == "application/problem+json")
    if answer.status_code == httpx.codes.OK and sample.tokens is not None:
        return bool([item["tokens"] for item in answer.json()["data"]] == sample.tokens)
    return answer.status_code in sample.statuses


def run_chaos(
    server: Server,
    redis: RedisServer,
    jpegs: Sequence[bytes],
    *,
    requests: int,
    fault_every: float,
    seed: int = 0,
) -> Outcome:
    """Runs it against a server with at least one worker process, and waits until that is at rest again.

    It goes on after ``requests`` until every kind of fault has been caused.
    """
    chaos = _Chaos(server, Faults(server, redis), requests=requests, fault_every=fault_every, seed=seed, jpegs=jpegs)
    chaos.note_resources()
    asyncio.run(chaos.run())
    is_at_rest: Callable[[Any], bool] = lambda health: (  # noqa: E731  named for the reader
        health["status"] == "ready" and all(lane == AT_REST for lane in health["lanes"].values())
    )
    chaos.outcome.lanes = server.until(is_at_rest)["lanes"]
    last = chaos._good[0]
    answer = httpx.post(
        server.url + last.route, content=last.body, headers={"Content-Type": last.content_type}, timeout=HANG_SECONDS
    )
    if answer.status_code != httpx.codes.OK or not _is_right(answer, last):
        chaos.outcome.wrong.append(f"the request after it all: {answer.status_code} {answer.text[:300]}")
    chaos.note_resources()
    deadline = time.monotonic() + HANG_SECONDS
    while not chaos.outcome.is_back() and time.monotonic() < deadline:
        time.sleep(
            PAUSE_SECONDS
        )  # abandoned images are decoded to their end, and connections closed after their client
        chaos.note_resources()
    return chaos.outcome


def main() -> None:
    """Prints the outcome as JSON, with the service's own times of the late answers."""
    from tests.benchmarks.served import jpegs  # needs torch and the benchmarks' packages

    parser = argparse.ArgumentParser(description="Many requests, and one fault after the other.")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--fault-every", type=float, default=2.0, help="seconds between two faults")
    parser.add_argument("--front-ends", default=SETTINGS["front_ends"])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        redis = RedisServer(Path(folder)).start()
        server = start_server(**SETTINGS | {"front_ends": arguments.front_ends}, redis_url=redis.url)
        try:
            server.wait_until_ready()
            outcome = run_chaos(
                server,
                redis,
                jpegs(256, 32),
                requests=arguments.requests,
                fault_every=arguments.fault_every,
                seed=arguments.seed,
            )
        finally:
            end(server)
            redis.kill()
    seconds = {line["request_id"]: line["duration_ms"] / 1000 for line in lines(server) if line["event"] == "request"}
    for answer in outcome.late:
        answer["server_seconds"] = seconds.get(answer["request_id"])
    print(json.dumps(vars(outcome) | {"is_back": outcome.is_back(), "load_average": os.getloadavg()}, indent=1))


if __name__ == "__main__":
    main()
