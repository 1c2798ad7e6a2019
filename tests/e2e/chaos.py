"""Thousands of requests, good and bad, impatient and abandoned, while a worker is killed every few seconds.

Used by ``test_chaos.py``, and alone for the long run::

    python -m tests.e2e.chaos --requests 10000 --kill-every 5

Every good request must be answered rightly, or refused with 429, 503 or 504; every bad one with a problem of its own;
nothing may hang. Afterwards the queues are empty, the next request is answered, and no memory, thread or descriptor of a
front end has gone with any of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.conftest import Server, end, start_server

__all__ = ["Outcome", "Sample", "run_chaos", "samples_of"]

CLIENTS = 32
HANG_SECONDS = 120.0
PAUSE_SECONDS = 0.25
REFUSALS = (429, 503, 504)
RETRIED = (429, 503)
ANSWERS_BETWEEN_KILLS = 50
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
    kills: int = 0
    seconds: float = 0.0
    lanes: dict[str, dict[str, int]] = field(default_factory=dict)
    memory_mib: list[float] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)


def samples_of(url: str, jpegs: Sequence[bytes]) -> tuple[list[Sample], list[Sample]]:
    """Good samples, with the answers that a service at rest gives to them, and bad ones."""
    json_type = "application/json"
    good, bad = [], []
    with httpx.Client(base_url=url, timeout=HANG_SECONDS) as client:

        def ask(route: str, content_type: str, body: bytes) -> Any:
            answer = client.post(route, content=body, headers={"Content-Type": content_type, "Accept": json_type})
            return answer.raise_for_status().json()

        for jpeg in jpegs:
            tokens = [item["tokens"] for item in ask("/v1/encode", "image/jpeg", jpeg)["data"]]
            good += [Sample("/v1/encode", "image/jpeg", jpeg, tokens)] * 3
            bad.append(Sample("/v1/encode", "image/jpeg", jpeg[: len(jpeg) // 2], statuses=(400,)))
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
        Sample("/v1/decode", json_type, b'{"tokens": [[1, 2, 3]]}', statuses=(422,)),
        Sample("/v1/decode", json_type, b"{", statuses=(400,)),
        Sample("/v1/generate", json_type, b'{"class": "no such class"}', statuses=(404,)),
        Sample("/v1/generate", json_type, b'{"class": 0, "n": 10000}', statuses=(413, 422)),
    ]
    return good, bad


class _Chaos:
    def __init__(self, server: Server, requests: int, kill_every: float, seed: int, jpegs: Sequence[bytes]) -> None:
        self._server = server
        self._kill_every = kill_every
        self._random = random.Random(seed)
        self._good, self._bad = samples_of(server.url, jpegs)
        self._left = requests
        self.outcome = Outcome(requests)

    async def run(self) -> None:
        begun = time.monotonic()
        limits = httpx.Limits(max_connections=2 * CLIENTS, max_keepalive_connections=CLIENTS)
        async with httpx.AsyncClient(base_url=self._server.url, timeout=HANG_SECONDS, limits=limits) as client:
            killer = asyncio.create_task(self._kill())
            await asyncio.gather(*(self._client(client) for _ in range(CLIENTS)))
            killer.cancel()
        self.outcome.seconds = time.monotonic() - begun

    async def _client(self, client: httpx.AsyncClient) -> None:
        while self._left > 0 or not self.outcome.kills:
            self._left -= 1
            if self._left % max(1, self.outcome.requests // 10) == 0:
                self.note_resources()
            kind = self._random.random()
            if kind < 0.15:
                await self._ask(client, self._random.choice(self._bad))
            elif kind < 0.30:
                await self._ask(client, self._random.choice(self._good), timeout_ms=self._random.randint(1, 300))
            elif kind < 0.45:
                await self._leave(client, self._random.choice(self._good), self._random.uniform(0.0, 0.2))
            else:
                await self._ask(client, self._random.choice(self._good))

    async def _leave(self, client: httpx.AsyncClient, sample: Sample, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._ask(client, sample)
        except TimeoutError:
            self.outcome.statuses["left"] += 1

    async def _ask(self, client: httpx.AsyncClient, sample: Sample, timeout_ms: int | None = None) -> None:
        headers = {"Content-Type": sample.content_type, "Accept": "application/json"}
        if timeout_ms is not None:
            headers["X-Request-Timeout-Ms"] = str(timeout_ms)
        try:
            answer = await client.post(sample.route, content=sample.body, headers=headers)
        except httpx.HTTPError as error:
            self.outcome.statuses["broken"] += 1
            self.outcome.wrong.append(f"{sample.route}: {error!r}")
            return
        self.outcome.statuses[str(answer.status_code)] += 1
        if answer.status_code in REFUSALS:
            if answer.status_code in RETRIED:  # or refusals would use up the run while a worker starts
                self._left += 1
                await asyncio.sleep(PAUSE_SECONDS)
            is_right = answer.headers["content-type"] == "application/problem+json"
        elif answer.status_code == httpx.codes.OK and sample.tokens is not None:
            is_right = [item["tokens"] for item in answer.json()["data"]] == sample.tokens
        else:
            is_right = answer.status_code in sample.statuses
        if not is_right:
            self.outcome.wrong.append(f"{sample.route}: {answer.status_code} {answer.text[:300]}")

    async def _kill(self) -> None:
        while True:
            answered = self.outcome.statuses["200"]
            await asyncio.sleep(self._kill_every)
            while self.outcome.statuses["200"] < answered + ANSWERS_BETWEEN_KILLS:  # noqa: ASYNC110
                await asyncio.sleep(PAUSE_SECONDS)
            await asyncio.to_thread(self._server.wait_until_ready)
            for child in await asyncio.to_thread(self._children, "worker"):
                with suppress(ProcessLookupError):
                    os.kill(child["pid"], signal.SIGKILL)
                    self.outcome.kills += 1

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


def run_chaos(server: Server, jpegs: Sequence[bytes], *, requests: int, kill_every: float, seed: int = 0) -> Outcome:
    """Runs it against a server with at least one worker process, and waits until that is at rest again."""
    chaos = _Chaos(server, requests, kill_every, seed, jpegs)
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
    if answer.status_code != httpx.codes.OK or [item["tokens"] for item in answer.json()["data"]] != last.tokens:
        chaos.outcome.wrong.append(f"the request after it all: {answer.status_code} {answer.text[:300]}")
    chaos.note_resources()
    deadline = time.monotonic() + HANG_SECONDS
    while chaos.outcome.descriptors[-1] > chaos.outcome.descriptors[0] and time.monotonic() < deadline:
        time.sleep(PAUSE_SECONDS)  # the service closes a connection after its client
        chaos.note_resources()
    return chaos.outcome


def main() -> None:
    """Prints the outcome as JSON."""
    from tests.benchmarks.served import jpegs  # needs torch and the benchmarks' packages

    parser = argparse.ArgumentParser(description="Many requests, and a worker killed again and again.")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--kill-every", type=float, default=5.0, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    server = start_server(cache="off")
    try:
        server.wait_until_ready()
        outcome = run_chaos(
            server, jpegs(256, 32), requests=arguments.requests, kill_every=arguments.kill_every, seed=arguments.seed
        )
    finally:
        end(server)
    print(json.dumps(vars(outcome), indent=1))


if __name__ == "__main__":
    main()
