"""A cache filled before anybody asks: images of a data set made known, by a model here or by a running service.

::

    a thread                 known already? ── yes ──> counted
    read, hash ──> chunk ──>        │ no
                             encode, many at a time ──> the cache     (tokenization.py here, or the service's own)

Either way an upload of the same bytes is a hit afterwards: the keys are those of the service, because it is the service's
code that makes them.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from service.bulk.entries import Entry, Position, Source
from service.bulk.errors import BrokenImage, BulkError
from service.cache import KeySpace
from service.cache.opening import open_cache
from service.cache.protocol import BreakerState, CacheObserver
from service.client import AsyncTiTokClient, NotFound, ServiceProblem
from service.engine import EngineError, EngineStopped
from service.imaging.errors import ImageError
from service.inference.model_info import ModelInfo
from service.operations.build import Operations, build_operations, lane_limits
from service.operations.preprocessing import Upload
from service.processes.single_process import inline_engine
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.observer import MetricsObserver
from service.telemetry.timings import RequestTimings

__all__ = ["Warmed", "Warmer", "local_warmer", "remote_warmer", "warm"]

_IMAGES_OF_A_CHUNK = 128
_DEADLINE = 3600.0  # seconds of one image: nobody waits for it
_MENDABLE = (400, 413, 415, 422)  # statuses that an image itself is to blame for


@dataclass
class Warmed:
    """What became of a data set's images: those that were new, those that were known, and why others cannot be."""

    encoded: int = 0
    known: int = 0
    broken: list[tuple[str, str]] = field(default_factory=list)


class Warmer(Protocol):
    """Who makes images known."""

    async def are_known(self, digests: Sequence[bytes]) -> list[bool]:
        """By the SHA-256 of their files."""

    async def encode(self, image: bytes) -> None:
        """Makes one known. Raises ``BrokenImage`` if that one cannot be."""


async def warm(
    source: Source, warmer: Warmer, *, concurrency: int, progress: Callable[[int, int], object] = lambda *_: None
) -> Warmed:
    """Makes the images of a source known, so many at a time. ``progress`` is told of images done, and broken ones of them.

    Raises what the source and the warmer raise; what was done by then is not lost.
    """
    result = Warmed()
    turns = asyncio.Semaphore(concurrency)

    async def encode(key: str, image: bytes) -> None:
        async with turns:
            try:
                await warmer.encode(image)
            except BrokenImage as error:
                result.broken.append((key, str(error)))
                progress(1, 1)
            else:
                result.encoded += 1
                progress(1, 0)

    entries = (entry for _, entry in source.entries(Position(0, 0)))
    reading = asyncio.create_task(asyncio.to_thread(_read, entries))
    try:
        while (chunk := await reading) is not None:
            reading = asyncio.create_task(asyncio.to_thread(_read, entries))
            result.broken += chunk.broken
            progress(len(chunk.broken), len(chunk.broken))
            known = await warmer.are_known(list(chunk.images))
            result.known += sum(known) + chunk.repeated
            progress(sum(known) + chunk.repeated, 0)
            async with asyncio.TaskGroup() as group:
                for (key, image), is_known in zip(chunk.images.values(), known, strict=True):
                    if not is_known:
                        group.create_task(encode(key, image))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        reading.cancel()
    return result


@dataclass
class _Chunk:
    """Images by the digest of their files, each with the key of its entry; how many files are the same as one of these;
    and entries that cannot be read.
    """

    images: dict[bytes, tuple[str, bytes]] = field(default_factory=dict)
    repeated: int = 0
    broken: list[tuple[str, str]] = field(default_factory=list)


def _read(entries: Iterator[Entry]) -> _Chunk | None:
    if not (taken := list(itertools.islice(entries, _IMAGES_OF_A_CHUNK))):
        return None
    chunk = _Chunk()
    for entry in taken:
        try:
            image = entry.read()
        except BrokenImage as error:
            chunk.broken.append((entry.key, str(error)))
        else:
            chunk.images.setdefault(hashlib.sha256(image).digest(), (entry.key, image))
    chunk.repeated = len(taken) - len(chunk.broken) - len(chunk.images)
    return chunk


@asynccontextmanager
async def remote_warmer(url: str, *, api_key: str | None, concurrency: int) -> AsyncIterator[Warmer]:
    """A service that fills its own cache."""
    async with AsyncTiTokClient(url, api_key=api_key, concurrency=concurrency) as client:
        yield _Remote(client)


class _Remote:
    def __init__(self, client: AsyncTiTokClient) -> None:
        self._client = client

    async def are_known(self, digests: Sequence[bytes]) -> list[bool]:
        try:
            known = await self._client.lookup([digest.hex() for digest in digests])
        except NotFound:  # it does not tell
            return [False] * len(digests)
        return [known[digest.hex()] is not None for digest in digests]

    async def encode(self, image: bytes) -> None:
        try:
            await self._client.encode(image)
        except ServiceProblem as error:
            if error.status not in _MENDABLE:
                raise
            raise BrokenImage(str(error)) from None


@asynccontextmanager
async def local_warmer(settings: Settings) -> AsyncIterator[Warmer]:
    """A model in this process that writes to the settings' Redis.

    Raises ``BulkError`` where the model cannot be loaded or a caller's name would have to be part of keys; and, at the end,
    where Redis did not take what it was given.
    """
    if settings.cache_scope == "key":
        raise BulkError("TITOK_CACHE_SCOPE is key: fill the cache through the service, with --url and --api-key")
    failures = _Failures()
    metrics = Metrics()
    operations: Operations

    def set_model_info(info: ModelInfo) -> None:
        operations.models.set_model_info(info)

    engine = inline_engine(settings)(
        limits=lane_limits(settings), observer=MetricsObserver(metrics), on_model_info=set_model_info
    )
    operations = build_operations(settings, engine=engine, cache=open_cache(settings, failures), metrics=metrics)
    engine.start()
    try:
        try:
            await engine.ready()
        except EngineStopped as error:
            raise BulkError(f"the model did not start: {error}") from None
        yield _Local(operations, settings.cache_namespace)
    finally:
        await engine.stop(0.0)
        await operations.cache.close()
    if failures.counts:
        told = ", ".join(f"{op}: {reason} {count} times" for (op, reason), count in failures.counts.items())
        raise BulkError(f"Redis has not taken everything ({told}); the same command goes on")


class _Local:
    def __init__(self, operations: Operations, namespace: str) -> None:
        info = operations.models.info
        self._tokenizer = operations.tokenizer
        self._space = KeySpace(namespace, info.name, info.revision)

    async def are_known(self, digests: Sequence[bytes]) -> list[bool]:
        return [image is not None for image in await self._tokenizer.lookup_digests(digests, self._space)]

    async def encode(self, image: bytes) -> None:
        upload = Upload(image, None, "body")
        deadline = time.monotonic() + _DEADLINE
        try:
            await self._tokenizer.tokenize([upload], space=self._space, deadline=deadline, timings=RequestTimings())
        except ImageError as error:
            raise BrokenImage(str(error)) from None
        except EngineError as error:
            raise BulkError(str(error)) from None


class _Failures(CacheObserver):
    """Counts what went wrong with Redis: a service lives on without it, but here it is what the work is for."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def finished(self, op: str, seconds: float) -> None:
        """See ``CacheObserver``."""

    def failed(self, op: str, reason: str) -> None:
        """See ``CacheObserver``."""
        self.counts[op, reason] += 1

    def breaker(self, state: BreakerState) -> None:
        """See ``CacheObserver``."""
