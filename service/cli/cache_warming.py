"""Cache warming: encodes the images of a dataset into the cache, with a model in this process or with a service.

::

    thread                   cached? ── yes ──> counted
    read, hash ──> chunk ──>   │ no
                               └──> encode concurrently ──> cache     (by operations/tokenization.py, here or in the service)

Both ways use the service's code, hence its keys: an upload of the same bytes is a cache hit afterwards.
"""

import asyncio
import hashlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from service.bulk.entries import Entry, Position, Source
from service.bulk.errors import BrokenImage, BulkError
from service.cache import KeySpace
from service.cache.opening import open_cache
from service.cache.protocol import CacheFailure, CacheObserver, CacheOp
from service.client import AsyncTiTokClient, NotFound, ServiceProblem
from service.engine import EngineError, EngineStopped, InlineLink
from service.imaging.errors import ImageError
from service.inference.device import open_device
from service.operations.build import Operations, build_operations
from service.operations.preprocessing import Upload
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.timings import RequestTimings

_CHUNK_IMAGES = 128
_DEADLINE = 3600.0  # seconds for one image; no caller waits for it
_IMAGE_ERRORS = (400, 413, 415, 422)  # statuses caused by the image


@dataclass
class WarmingResult:
    """Numbers of newly encoded and of cached images, and (key, reason) of broken ones."""

    encoded: int = 0
    cached: int = 0
    broken: list[tuple[str, str]] = field(default_factory=list)


class CachingEncoder(NamedTuple):
    """Encodes images into a cache: ``are_cached`` says whether it has images, by the SHA-256 of their files; ``encode``
    encodes and caches an image, and raises ``BrokenImage``.
    """

    are_cached: Callable[[Sequence[bytes]], Awaitable[list[bool]]]
    encode: Callable[[bytes], Awaitable[object]]


async def warm_cache(
    source: Source, encoder: CachingEncoder, *, concurrency: int, progress: Callable[[int, int], object]
) -> WarmingResult:
    """Caches the images of a source, ``concurrency`` at a time. Calls ``progress`` with the numbers of images done and of
    broken ones among them.

    Raises what the source and the encoder raise; images cached by then stay cached.
    """
    result = WarmingResult()
    slots = asyncio.Semaphore(concurrency)

    async def encode(key: str, image: bytes) -> None:
        async with slots:
            try:
                await encoder.encode(image)
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
            cached = await encoder.are_cached(list(chunk.images))
            result.cached += sum(cached) + chunk.repeated
            progress(sum(cached) + chunk.repeated, 0)
            async with asyncio.TaskGroup() as group:
                for (key, image), is_cached in zip(chunk.images.values(), cached, strict=True):
                    if not is_cached:
                        group.create_task(encode(key, image))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        reading.cancel()
    return result


@dataclass
class _Chunk:
    """Images with their entries' keys, by the digest of their files; the number of duplicates; unreadable entries."""

    images: dict[bytes, tuple[str, bytes]] = field(default_factory=dict)
    repeated: int = 0
    broken: list[tuple[str, str]] = field(default_factory=list)


def _read(entries: Iterator[Entry]) -> _Chunk | None:
    if not (taken := list(itertools.islice(entries, _CHUNK_IMAGES))):
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
async def remote_encoder(url: str, *, api_key: str | None, concurrency: int) -> AsyncIterator[CachingEncoder]:
    """A service that fills its own cache."""
    async with AsyncTiTokClient(url, api_key=api_key, concurrency=concurrency) as client:
        is_vae = (await client.models())[0].kind == "vae"

        async def are_cached(digests: Sequence[bytes]) -> list[bool]:
            if is_vae:  # there are no look-ups of latents
                return [False] * len(digests)
            try:
                known = await client.lookup([digest.hex() for digest in digests])
            except NotFound:  # the service does not offer look-ups
                return [False] * len(digests)
            return [known[digest.hex()] is not None for digest in digests]

        async def encode(image: bytes) -> None:
            try:
                await (client.encode(image, latents=True) if is_vae else client.encode(image))
            except ServiceProblem as error:
                if error.status not in _IMAGE_ERRORS:
                    raise
                raise BrokenImage(str(error)) from None

        yield CachingEncoder(are_cached, encode)


@asynccontextmanager
async def local_encoder(settings: Settings) -> AsyncIterator[CachingEncoder]:
    """A model in this process that writes to the Redis of the settings.

    Raises ``BulkError`` if the model cannot be loaded or the cache is separate for each API key; and, at the end, if writes
    to Redis failed.
    """
    if settings.cache_scope == "key":
        raise BulkError("TITOK_CACHE_SCOPE is key: fill the cache through the service, with --url and --api-key")
    failures = _FailureCounter()
    link = InlineLink(partial(open_device, settings))
    operations = build_operations(settings, [link], cache=open_cache(settings, failures), metrics=Metrics())
    engine = operations.engine
    engine.start()
    try:
        try:
            await engine.ready()
        except EngineStopped as error:
            raise BulkError(f"the model did not start: {error}") from None
        yield _encoder_of(operations, settings.cache_namespace)
    finally:
        await engine.stop(0.0)
        operations.threads.close()
        await operations.cache.close()
    if failures.counts:
        listed = ", ".join(f"{op}: {reason} {count} times" for (op, reason), count in failures.counts.items())
        raise BulkError(f"some writes to Redis failed ({listed}); rerun the command to resume")


def _encoder_of(operations: Operations, namespace: str) -> CachingEncoder:
    info, tokenizer = operations.models.info, operations.tokenizer
    space = KeySpace(namespace, info.name, info.revision, latents=info.codes is None)

    async def are_cached(digests: Sequence[bytes]) -> list[bool]:
        return [image is not None for image in await tokenizer.lookup_digests(digests, space)]

    async def encode(image: bytes) -> None:
        upload = Upload(image, None, "body")
        deadline = time.monotonic() + _DEADLINE
        try:
            await tokenizer.tokenize([upload], space=space, deadline=deadline, timings=RequestTimings())
        except ImageError as error:
            raise BrokenImage(str(error)) from None
        except EngineError as error:
            raise BulkError(str(error)) from None

    return CachingEncoder(are_cached, encode)


class _FailureCounter(CacheObserver):
    """Counts failures of Redis, which the service tolerates but which make warming incomplete."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def failed(self, op: CacheOp, reason: CacheFailure) -> None:
        """See ``CacheObserver``."""
        self.counts[op, reason] += 1
