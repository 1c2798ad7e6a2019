"""HTTP load generation with h2load: a fixed number of connections (closed loop) or a fixed request rate (open loop).

``closed_loop`` keeps a number of connections busy, to measure capacity. ``open_loop`` opens a new connection for every
request at times that are fixed in advance, so that a slow server does not reduce its load; a request's latency counts
from the time it was due.

h2load (of nghttp2; C, MIT; Debian's ``nghttp2-client``, Homebrew's ``nghttp2``) logs start, status and duration of every
request; its share of the processor, which generator and server share, is part of the result. wrk, hey, autocannon
and locust send a request only when the one before it is answered; vegeta and oha do not, but are in neither PyPI nor
Debian 12, k6 is under the AGPL, and artillery under the MPL.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "Answer",
    "Load",
    "Request",
    "Seconds",
    "capacity",
    "closed_loop",
    "h2load_version",
    "open_loop",
    "require_h2load",
    "throughput",
]

Seconds = npt.NDArray[np.float64]

# Longer than any deadline of a server under test.
SILENCE = "90s"
LONGEST = 60.0  # seconds after which a server without a measurable rate is an error


@dataclass(frozen=True)
class Request:
    """A POST request that is sent repeatedly."""

    url: str
    body: bytes
    content_type: str


@dataclass(frozen=True)
class Answer:
    """An answer: ``due`` and ``finished`` in seconds since the epoch; ``status`` is -1 where the connection broke."""

    due: float
    finished: float
    status: int

    @property
    def latency(self) -> float:
        """Seconds from when the request was due to the answer's last byte."""
        return self.finished - self.due


@dataclass(frozen=True)
class Load:
    """The answers of one run, how many requests had none at all, and what the generator cost: its share of a core."""

    answers: Sequence[Answer]
    unanswered: int
    generator_share: float

    def finished(self, *statuses: int) -> Seconds:
        """When the answers with one of these statuses were complete, in order."""
        return np.sort([answer.finished for answer in self.answers if answer.status in statuses])

    def latencies(self, *statuses: int) -> Seconds:
        """Seconds that the answers with one of these statuses took, shortest first."""
        return np.sort([answer.latency for answer in self.answers if answer.status in statuses])

    def statuses(self) -> dict[str, int]:
        """Answers by status."""
        values, counts = np.unique([answer.status for answer in self.answers], return_counts=True)
        return {str(value): int(count) for value, count in zip(values, counts, strict=True)}


def closed_loop(requests: Sequence[Request], *, connections: int, seconds: float, warm_up: float = 0.0) -> Load:
    """``connections`` that each send a request as soon as the last one is answered, as many of them for each request;
    the warm-up is not in the result.
    """
    each, odd = divmod(connections, len(requests))
    if odd or not each:
        raise ValueError(f"{connections} connections cannot be shared by {len(requests)} requests")
    run = _run(requests, ["-c", str(each), "-D", f"{round(1000 * (warm_up + seconds))}ms"])
    # What all generators were there for.
    begin, end = run.last_start + warm_up, run.first_start + warm_up + seconds
    answers = [Answer(row.start, row.start + row.taken, row.status) for row in run.rows]
    return Load([answer for answer in answers if begin < answer.finished <= end], 0, run.share)


def capacity(requests: Sequence[Request], *, connections: int, seconds: float, warm_up: float) -> tuple[float, Load]:
    """Answers a second in a closed loop; one that was too short for a rate is run again for twice as long.

    Raises ``RuntimeError`` if anything but 200 is answered.
    """
    while True:
        load = closed_loop(requests, connections=connections, seconds=seconds, warm_up=warm_up)
        if set(load.statuses()) - {"200"}:
            raise RuntimeError(f"{requests[0].url} answered {load.statuses()}")
        try:
            return throughput(load.finished(200), seconds=seconds), load
        except ValueError:
            if seconds > LONGEST:
                raise
            seconds *= 2


def open_loop(request: Request, *, rate: float, seconds: float) -> Load:
    """``rate`` requests a second (to the nearest that whole milliseconds allow), each on a connection of its own."""
    count, period = _schedule(rate)
    total = count * math.ceil(rate * seconds / count)
    timing = ["-n", str(total), "-c", str(total), "-r", str(count), f"--rate-period={period}ms"]
    run = _run([request], timing)
    rows = sorted(run.rows, key=lambda row: row.start)
    starts = np.array([row.start for row in rows])
    offsets = np.arange(len(rows)) // count * period / 1000
    # The clock of the schedule: the earliest that lets no request start before it was due.
    due = offsets + np.min(starts - offsets, initial=np.inf)
    answers = [Answer(float(when), row.start + row.taken, row.status) for when, row in zip(due, rows, strict=True)]
    return Load(answers, total - len(rows), run.share)


def throughput(finished: Sequence[float] | Seconds, *, seconds: float) -> float:
    """Answers a second in the steady state of a run that took so many ``seconds``.

    Answers come in bursts, one for each batch. The count begins and ends behind a burst, where the gap is widest in the
    first and in the last third of the time, so that a burst more or less at either end does not sway it. Raises
    ``ValueError`` for bursts too few to make out.
    """
    if len(finished) >= 3:
        ordered = np.sort(finished)
        third = (ordered[-1] - ordered[0]) / 3
        gaps = np.diff(ordered)
        early, late = ordered[:-1] <= ordered[0] + third, ordered[1:] >= ordered[-1] - third
        first, last = (int(np.where(where, gaps, -1.0).argmax()) for where in (early, late))
        if (span := float(ordered[last] - ordered[first])) > seconds / 4:
            return (last - first) / span
    raise ValueError(f"{len(finished)} answers in {seconds:g} s show no rate: let it run longer")


def require_h2load() -> None:
    """Ends the program, saying how to get it, where h2load is not installed."""
    if shutil.which("h2load") is None:
        sys.exit("This benchmark needs h2load: apt-get install nghttp2-client, or brew install nghttp2.")


def h2load_version() -> str:
    """Its name and version."""
    return subprocess.run(["h2load", "--version"], capture_output=True, text=True, check=True).stdout.strip()


def _schedule(rate: float) -> tuple[int, int]:
    """Requests a period, and the period in milliseconds, that come within 1 % of ``rate`` a second."""
    for count in range(1, 1001):
        period = round(1000 * count / rate)
        if period >= 5 and abs(1000 * count / period / rate - 1) < 0.01:
            return count, period
    raise ValueError(f"no period makes {rate:g} requests a second")


class _Row(NamedTuple):
    """A line of h2load's log: start in seconds since the epoch, and the seconds it took."""

    start: float
    status: int
    taken: float


class _Run(NamedTuple):
    """The log of all generators of a run, when the first and the last of them began, and their share of a core."""

    rows: Sequence[_Row]
    first_start: float
    last_start: float
    share: float


def _run(requests: Sequence[Request], timing: Sequence[str]) -> _Run:
    """One h2load for each request, because it knows one body."""
    with tempfile.TemporaryDirectory() as folder:
        generators = []
        begun = []
        for index, request in enumerate(requests):
            body, log, output = (Path(folder) / f"{name}-{index}" for name in ("body", "log", "output"))
            body.write_bytes(request.body)
            command = ["h2load", "--h1", *timing, "-N", SILENCE, "-d", str(body), f"--log-file={log}"]
            command += ["-H", f"content-type: {request.content_type}", request.url]
            begun.append(time.time())
            with output.open("w") as file:
                process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
            generators.append((process, log, output))
        seconds, rows = 0.0, []
        for process, log, output in generators:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode or not log.exists():
                raise RuntimeError(f"h2load ended with {process.returncode}:\n{output.read_text()}")
            seconds += usage.ru_utime + usage.ru_stime
            for line in log.read_text().splitlines():
                start, code, taken = line.split()[:3]
                rows.append(_Row(int(start) / 1e6, int(code), int(taken) / 1e6))
        wall = time.time() - begun[0]
    return _Run(rows, begun[0], begun[-1], seconds / wall)
