"""Damaged images into the service's decoding, and a sample of them through HTTP.

Each must become an image or a problem below 500, in bounded time, in as much memory as was said before, and
leave nothing behind.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from models.codes.packed import MEDIA_TYPE as PACKED_CODES
from service.imaging.formats import sniff
from tests.fuzz.decoder_process import Crashed, Decoder
from tests.fuzz.mutations import mutated, mutated_bytes
from tests.fuzz.seeds import seeds

__all__ = ["Tally", "fuzz_decoding", "fuzz_http"]

MiB = 1 << 20
# Decoders have tables and buffers of their own, which do not grow with the image.
UNRESERVED = 32 * MiB
_ROUND = 1000  # Hypothesis remembers what it has tried in a run, so that a run is short
_SAMPLES = 10  # of what the process holds


@dataclass
class Tally:
    """What came of the images: how often each outcome, and what must not be. ``resident`` is the least that the process held
    during each tenth of them: what is never given back raises it.
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


def fuzz_decoding(count: int, *, first_seed: int, keep: Path | None = None) -> Tally:
    """``count`` different damaged images. What fails is written into the folder ``keep``, made as small as it can be."""
    tally, begin = Tally(), time.monotonic()
    with Decoder() as decode:
        for name, data in seeds().items():
            answer = decode(data)
            assert answer.status == 200, f"the seed {name} is refused: {answer}"

        held: defaultdict[int, list[int]] = defaultdict(list)

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
            held[tally.images * _SAMPLES // (count + 1)].append(answer.resident)

        _run(mutated(seeds()), check, count, first_seed=first_seed, failures=tally.failures, keep=keep)
    tally.resident = [min(held[tenth]) for tenth in sorted(held)]
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
    for number in range(10 + 10 * count // _ROUND):
        round_of_files = _Round(check, seen, count)
        test = settings(
            max_examples=min(_ROUND, count),
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )(given(files)(round_of_files.check))
        try:
            seed(first_seed + number)(test)()
        except Exception as error:
            name = f"seed-{first_seed + number}-{hashlib.sha256(round_of_files.last).hexdigest()[:12]}"
            failures.append(f"{name}: {error!r:.2000}")
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / name).write_bytes(round_of_files.last)
        if len(seen) >= count:
            return
    raise AssertionError("Hypothesis finds nothing new")


class _Round:
    """Files of one seed: what was seen before is left out, until something fails and Hypothesis makes it smaller."""

    def __init__(self, check: Callable[[bytes], Any], seen: set[bytes], count: int) -> None:
        self._check, self._seen, self._count = check, seen, count
        self._failing = False
        self.last = b""

    def check(self, data: bytes) -> None:
        digest = hashlib.sha256(data).digest()[:16]
        if not self._failing and (digest in self._seen or len(self._seen) >= self._count):
            return
        self._seen.add(digest)
        self.last = data
        try:
            self._check(data)
        except Exception:
            self._failing = True
            raise
