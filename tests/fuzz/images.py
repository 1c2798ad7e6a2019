"""Damaged images into the service's decoding, and a sample of them through HTTP.

Each must become an image or a problem below 500, within ``MOST_SECONDS``, in as much memory as was said before, and
leave nothing behind.
"""

from __future__ import annotations

import hashlib
import json
import selectors
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from models.packed_codes import MEDIA_TYPE as PACKED_CODES
from service.media import sniff
from tests.fuzz.decoder import Answer
from tests.fuzz.mutations import mutated, mutated_bytes
from tests.fuzz.seeds import seeds

__all__ = ["Tally", "fuzz_decoding", "fuzz_http"]

MiB = 1 << 20
MOST_SECONDS = 10.0
# Decoders have tables and buffers of their own, which do not grow with the image.
UNRESERVED = 32 * MiB
_ROUND = 1000  # Hypothesis remembers what it has tried in a run, so that a run is short
_SAMPLES = 10  # of what the process holds


@dataclass
class Tally:
    """What came of the images: how often each outcome, and every one that is none of those allowed. ``resident`` is what the
    process held after each tenth of them.
    """

    images: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    crashes: int = 0
    slowest_seconds: float = 0.0
    largest_peak: int = 0
    most_over_reserved: int = 0
    resident: list[int] = field(default_factory=list)
    seconds: float = 0.0


class Decoder:
    """The process of ``tests/fuzz/decoder.py``; a new one where it has ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._log.close()

    def __call__(self, data: bytes) -> Answer:
        """What became of an image. Raises ``Crashed``."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(len(data).to_bytes(4, "big") + data)
            process.stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                if not selector.select(MOST_SECONDS):
                    process.kill()
                    raise Crashed(f"no answer within {MOST_SECONDS} seconds")
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        except Crashed:
            self._end()
            raise
        if not line:
            code = process.wait(MOST_SECONDS)
            self._end()
            self._log.seek(0)
            raise Crashed(f"the process ended with {code}: {self._log.read()[-2000:].decode(errors='replace')}")
        return Answer(**json.loads(line))

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.decoder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=Path(__file__).parents[2],
        )
        return self._process

    def _end(self) -> None:
        if (process := self._process) is not None:
            self._process = None
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


class Crashed(Exception):
    """A decoder that ended, or had to be ended."""


def fuzz_decoding(count: int, *, first_seed: int, keep: Path | None = None) -> Tally:
    """At least ``count`` different damaged images. What fails is written into the folder ``keep``, made as small as it can."""
    tally, begin = Tally(), time.monotonic()
    with Decoder() as decode:
        for name, data in seeds().items():
            answer = decode(data)
            assert answer.status == 200, f"the seed {name} is refused: {answer}"

        next_sample = [count // _SAMPLES]

        def check(data: bytes) -> None:
            tally.images += 1
            try:
                answer = decode(data)
            except Crashed:
                tally.crashes += 1
                raise
            assert answer.error is None, answer.error
            assert answer.status == 200 or 400 <= answer.status < 500, answer
            over = answer.peak - answer.reserved
            assert over <= UNRESERVED, f"{over} bytes more than the {answer.reserved} that were reserved"
            tally.outcomes[f"{answer.status} {answer.name}"] += 1
            tally.formats[sniff(data) or "none"] += 1
            tally.slowest_seconds = max(tally.slowest_seconds, answer.seconds)
            tally.largest_peak = max(tally.largest_peak, answer.peak)
            tally.most_over_reserved = max(tally.most_over_reserved, over)
            if tally.images >= next_sample[0]:
                tally.resident.append(answer.resident)
                next_sample[0] += count // _SAMPLES

        _run(mutated(seeds()), check, count, first_seed=first_seed, failures=tally.failures, keep=keep)
    tally.seconds = time.monotonic() - begin
    return tally


def fuzz_http(
    client: httpx.Client, count: int, *, first_seed: int, packed_codes: Mapping[str, bytes], keep: Path | None = None
) -> tuple[Counter[str], list[str]]:
    """``count`` damaged images to ``/v1/encode`` and as many damaged files of packed codes to ``/v1/decode``: statuses, and
    whatever must not be. An image gets the status through HTTP that it has without.
    """
    statuses: Counter[str] = Counter()
    failures: list[str] = []

    def ask(path: str, data: bytes, content_type: str) -> httpx.Response:
        answer = client.post(path, content=data, headers={"Content-Type": content_type})
        statuses[f"POST {path} {answer.status_code}"] += 1
        assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text
        if answer.status_code != 200:
            assert answer.headers["content-type"] == "application/problem+json", answer.headers
            assert answer.json()["status"] == answer.status_code
        return answer

    with Decoder() as decode:

        def encode_image(data: bytes) -> None:
            answer, alone = ask("/v1/encode", data, "application/octet-stream"), decode(data)
            assert answer.status_code == alone.status, f"{answer.text}, but alone: {alone}"

        def decode_codes(data: bytes) -> None:
            ask("/v1/decode", data, PACKED_CODES)

        _run(mutated(seeds()), encode_image, count, first_seed=first_seed, failures=failures, keep=keep)
        _run(mutated_bytes(packed_codes), decode_codes, count, first_seed=first_seed, failures=failures, keep=keep)
    return statuses, failures


def _run(
    files: SearchStrategy[bytes],
    check: Callable[[bytes], Any],
    count: int,
    *,
    first_seed: int,
    failures: list[str],
    keep: Path | None,
) -> None:
    """Checks ``count`` different files. A failure ends its round, not the run."""
    seen: set[bytes] = set()
    rounds = 0
    while len(seen) < count:

        @seed(first_seed + rounds)
        @settings(
            max_examples=min(_ROUND, count),
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
            print_blob=False,
        )
        @given(files)
        def round_of_files(data: bytes) -> None:
            last[:] = [data]
            digest = hashlib.sha256(data).digest()[:16]
            if digest not in seen or failing:
                if len(seen) >= count and not failing:
                    return
                seen.add(digest)
                try:
                    check(data)
                except Exception:
                    failing.append(True)
                    raise

        last: list[bytes] = []
        failing: list[bool] = []
        try:
            round_of_files()
        except Exception as error:
            name = f"seed-{first_seed + rounds}-{hashlib.sha256(last[0]).hexdigest()[:12]}"
            failures.append(f"{name}: {error!r:.2000}")
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / name).write_bytes(last[0])
        rounds += 1
        assert rounds < 10 + 10 * count / _ROUND, "Hypothesis finds nothing new"
