"""Two replicas behind a real haproxy, replaced one after the other while requests come: none may notice.

Used by ``test_rolling_update.py``, and alone for the long run::

    python -m tests.e2e.rolling --rounds 5

Most clients keep their connection and send as soon as they are answered; others come with a new connection at fixed
times, whatever became of those before. Every answer is checked. Nobody but haproxy tries anything again.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import httpx
import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.e2e.conftest import Server, end, start_server
from tests.e2e.load_balancer import LoadBalancer, free_port, load_balancer

__all__ = ["Outcome", "run_rolling"]

KEEPING_CLIENTS = 4
ARRIVALS_PER_SECOND = 5.0
PAUSE_SECONDS = 0.1  # of a kept connection, so that starting replicas are not slowed down
HANG_SECONDS = 120.0
EXIT_SECONDS = 120.0
KINDS = ("encode, kept connection", "encode, new connection", "decode, kept connection", "decode, new connection")
# Of 255, on average: replicas may draw in different precisions.
ALIKE = 2.0
SETTINGS = {"shutdown_delay": "2", "cache": "off", "threads": "1", "max_batch_size": "4"}


@dataclass(frozen=True)
class Sample:
    """An image file, its ids, and what they draw: uint8 ``[S, S, 3]``."""

    jpeg: bytes
    tokens: list[int]
    drawn: npt.NDArray[np.uint8]


@dataclass
class Outcome:
    """What came of a run. ``failed`` describes every request that was not answered rightly."""

    rounds: int
    replacements: int = 0
    answered: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    failed: list[str] = field(default_factory=list)
    answered_in_replacement: list[int] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)  # of the replaced
    by_replica: dict[str, int] = field(default_factory=dict)
    connections_tried_again: int = 0
    seconds: float = 0.0
    median_ms: float = 0.0
    slowest_ms: float = 0.0


class _Replica:
    """One place behind the load balancer: its ports stay, its process is replaced."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port, self.admin_port = free_port(), free_port()
        self.server = self._start()

    def _start(self) -> Server:
        return start_server(port=str(self.port), admin_port=str(self.admin_port), **SETTINGS)

    def replace(self) -> int:
        """Ends it as a service manager does, and starts the next. Gives its exit status."""
        self.server.process.send_signal(signal.SIGTERM)
        status = self.server.process.wait(EXIT_SECONDS)
        end(self.server)
        self.server = self._start()
        return status


class _Load:
    """Requests from a thread of its own, until the block ends."""

    def __init__(self, url: str, samples: Sequence[Sample], outcome: Outcome) -> None:
        self._url = url
        self._samples = samples
        self._outcome = outcome
        self._stopped = False
        self._milliseconds: list[float] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        began = time.monotonic()
        thread.start()
        try:
            yield
        finally:
            self._stopped = True
            thread.join()
            self._outcome.seconds = round(time.monotonic() - began, 1)
            self._outcome.median_ms = round(float(np.median(self._milliseconds)), 1)
            self._outcome.slowest_ms = round(max(self._milliseconds), 1)

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for index in range(KEEPING_CLIENTS):
                group.create_task(self._keep_asking(index))
            arrivals = 0
            while not self._stopped:
                group.create_task(self._come_once(arrivals))
                arrivals += 1
                await asyncio.sleep(1 / ARRIVALS_PER_SECOND)

    async def _keep_asking(self, index: int) -> None:
        async with httpx.AsyncClient(base_url=self._url, timeout=HANG_SECONDS) as client:
            while not self._stopped:
                await self._ask(client, index, "kept")
                index += 1
                await asyncio.sleep(PAUSE_SECONDS)

    async def _come_once(self, index: int) -> None:
        async with httpx.AsyncClient(base_url=self._url, timeout=HANG_SECONDS) as client:
            await self._ask(client, index, "new")

    async def _ask(self, client: httpx.AsyncClient, index: int, connection: str) -> None:
        sample = self._samples[index // 2 % len(self._samples)]
        operation, check = (("encode", self._encode), ("decode", self._decode))[index % 2]
        began = time.monotonic()
        try:
            complaint = await check(client, sample)
        except (httpx.HTTPError, ValueError, LookupError) as error:
            complaint = repr(error)
        self._milliseconds.append(1000 * (time.monotonic() - began))
        name = f"{operation}, {connection} connection"
        if complaint is None:
            self._outcome.answered[name] += 1
        else:
            self._outcome.failed.append(f"{name}: {complaint}")

    async def _encode(self, client: httpx.AsyncClient, sample: Sample) -> str | None:
        answer = await client.post("/v1/encode", content=sample.jpeg, headers={"Content-Type": "image/jpeg"})
        if answer.status_code == httpx.codes.OK and answer.json()["data"][0]["tokens"] == sample.tokens:
            return None
        return f"{answer.status_code} {answer.text[:300]}"

    async def _decode(self, client: httpx.AsyncClient, sample: Sample) -> str | None:
        answer = await client.post("/v1/decode", json={"tokens": [sample.tokens]}, headers={"Accept": "image/png"})
        if answer.status_code == httpx.codes.OK and np.abs(_pixels(answer.content) - sample.drawn).mean() < ALIKE:
            return None
        return f"{answer.status_code} {answer.content[:300]!r}"


def _pixels(png: bytes) -> npt.NDArray[np.float32]:
    return np.asarray(Image.open(io.BytesIO(png)), dtype=np.float32)


def _sample(url: str, jpeg: bytes) -> Sample:
    with httpx.Client(base_url=url, timeout=HANG_SECONDS) as client:
        encoded = client.post("/v1/encode", content=jpeg, headers={"Content-Type": "image/jpeg"}).raise_for_status()
        tokens = encoded.json()["data"][0]["tokens"]
        drawn = client.post("/v1/decode", json={"tokens": [tokens]}, headers={"Accept": "image/png"}).raise_for_status()
    return Sample(jpeg, tokens, _pixels(drawn.content).astype(np.uint8))


def run_rolling(jpegs: Sequence[bytes], *, rounds: int) -> Outcome:
    """Replaces both replicas so many times."""
    outcome = Outcome(rounds)
    replicas: list[_Replica] = []
    try:
        replicas.extend(_Replica(name) for name in ("one", "two"))
        for replica in replicas:
            replica.server.wait_until_ready()
        places = [(replica.name, replica.port, replica.admin_port) for replica in replicas]
        with load_balancer(places) as balancer:
            samples = [_sample(balancer.url, jpeg) for jpeg in jpegs]
            with _Load(balancer.url, samples, outcome).running():
                for _ in range(rounds):
                    for replica in replicas:
                        _replace(replica, balancer, outcome)
            for name, told in balancer.replicas().items():
                outcome.by_replica[name] = int(told["stot"])
                outcome.connections_tried_again += int(told["wretr"])
    finally:
        for replica in replicas:
            end(replica.server)
    return outcome


def _replace(replica: _Replica, balancer: LoadBalancer, outcome: Outcome) -> None:
    before = sum(outcome.answered.values())
    outcome.exits.append(replica.replace())
    replica.server.wait_until_ready()
    balancer.wait_until_up(replica.name)
    outcome.answered_in_replacement.append(sum(outcome.answered.values()) - before)
    outcome.replacements += 1


def main() -> None:
    """Prints the outcome as JSON."""
    from tests.benchmarks.served import jpegs  # needs torch and the benchmarks' packages

    parser = argparse.ArgumentParser(description="Two replicas, replaced one after the other under load.")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(json.dumps(asdict(run_rolling(jpegs(256, 8), rounds=arguments.rounds)), indent=1))


if __name__ == "__main__":
    main()
