"""Uploads to tokens, through the cache. Tokens are ids, or in a key space of latents the output of the encoder.

::

    digest of the file known? ── no ──> room in the queue ──> decode ──> digest of the pixels known? ── no ──> device
            │ yes                                                              │ yes                            │
            └────────────────────────── tokens <───────────────────────────────┴────────────────────────────────┘
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from models.arrays import Pixels
from models.codes.code_format import CodeFormat
from service.cache import CachedCode, CodeCache, KeySpace
from service.engine import DeadlineExceeded, DeviceFailed, EncodeTicket, Engine, EngineTokens, WorkerCrashed
from service.operations.preprocessing import ImagePreprocessor, Upload
from service.operations.served_models import ServedModels
from service.operations.single_flight import SingleFlight
from service.telemetry.metrics import Metrics
from service.telemetry.timings import RequestTimings

_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.05  # seconds between two looks at another process's claim


@dataclass(frozen=True)
class TokenizedImage:
    """An upload's K ids, the same packed as ``CodeFormat`` does, and whether they came from the cache.

    With latents there are no ids, and ``packed`` is the output of the encoder, float32 (``LatentFormat.encoded``).
    """

    tokens: Sequence[int]
    packed: bytes
    original_size: tuple[int, int]
    cached: bool

    def cut(self, code_format: CodeFormat) -> TokenizedImage:
        """The image with only its first tokens, as many as the format has."""
        if len(self.tokens) == code_format.num_tokens:
            return self
        tokens = self.tokens[: code_format.num_tokens]
        return replace(self, tokens=tokens, packed=code_format.pack(tokens).tobytes())


@dataclass(frozen=True)
class CacheLookup:
    """Uploads with their cache keys in ``space``, and the images found by the digests of their files."""

    uploads: Sequence[Upload]
    space: KeySpace
    keys: Sequence[bytes]
    found: Mapping[bytes, TokenizedImage]

    @property
    def images(self) -> list[TokenizedImage] | None:
        """All of the images, or None if one is missing."""
        return [self.found[key] for key in self.keys] if self.keys and self.found.keys() >= set(self.keys) else None


@dataclass(frozen=True)
class _Request:
    space: KeySpace
    deadline: float
    timings: RequestTimings


class ImageTokenizer:
    """Tokenizes uploads with one engine and one cache.

    ``is_cached``: whether codes are looked up and stored at all. ``claim_seconds``: how long a claim on a key in the cache
    keeps other processes from computing the same image.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        cache: CodeCache,
        is_cached: bool,
        claim_seconds: float,
        models: ServedModels,
        preprocessor: ImagePreprocessor,
        metrics: Metrics,
    ) -> None:
        self._engine = engine
        self._cache = cache
        self._is_cached = is_cached
        self._claim_seconds = claim_seconds
        self._models = models
        self._preprocessor = preprocessor
        self._metrics = metrics
        self._in_progress: SingleFlight[TokenizedImage] = SingleFlight()

    async def wait_for_room(self, deadline: float) -> None:
        """Called before a body is read. Waits a moment for room in a full queue, or raises ``QueueFull``.

        Does nothing with a cache, which may hold the images of the body.
        """
        if not self._is_cached:
            await self._engine.wait_for_room("encode", deadline=deadline)

    async def tokenize(
        self, uploads: Sequence[Upload], *, space: KeySpace, deadline: float, timings: RequestTimings
    ) -> list[TokenizedImage]:
        """Tokens of uploads. Cached images are neither decoded nor queued; equal images are computed once.

        Raises ``ImageError`` or ``EngineError``.
        """
        lookup = await self.lookup_uploads(uploads, space=space, timings=timings)
        return lookup.images or await self.tokenize_missing(lookup, deadline=deadline, timings=timings)

    async def lookup_digests(self, digests: Sequence[bytes], space: KeySpace) -> list[TokenizedImage | None]:
        """Cached images by the SHA-256 of their files."""
        return await self._get_many([space.upload(digest) for digest in digests], space, "lookup")

    async def lookup_uploads(
        self, uploads: Sequence[Upload], *, space: KeySpace, timings: RequestTimings
    ) -> CacheLookup:
        """Looks up uploads by their files. Takes no longer than the cache's time limit."""
        timings.record_image_count(len(uploads))
        if not self._is_cached:
            return CacheLookup(uploads, space, (), {})
        with timings.measure("cache"):
            keys = [space.upload(hashlib.sha256(upload.data).digest()) for upload in uploads]
            distinct = list(dict.fromkeys(keys))
            cached = await self._get_many(distinct, space, "hit")
        found = {key: image for key, image in zip(distinct, cached, strict=True) if image}
        if found:
            timings.record_image_count(len(uploads), cache_hits=sum(key in found for key in keys))
        return CacheLookup(uploads, space, keys, found)

    async def tokenize_missing(
        self, lookup: CacheLookup, *, deadline: float, timings: RequestTimings
    ) -> list[TokenizedImage]:
        """Tokens of uploads that were looked up and were not all found. Raises as ``tokenize`` does."""
        if not self._is_cached:
            return await self._compute_uncached(_Request(lookup.space, deadline, timings), lookup.uploads)
        request = _Request(lookup.space, deadline, timings)
        found = dict(lookup.found)
        # Of equal uploads the first, because error details point to it.
        wanted = dict(zip(reversed(lookup.keys), reversed(lookup.uploads), strict=True))
        while missing := [key for key in dict.fromkeys(lookup.keys) if key not in found]:
            in_progress = {key: self._in_progress.get_or_start(key) for key in missing}
            own = {key: wanted[key] for key, future in in_progress.items() if future is None}
            if own:
                found |= await self._compute_shared(request, own)
            for key, future in in_progress.items():
                if future is not None:
                    found |= await self._wait_for(future, request, key, wanted[key])
        images = [found[key] for key in lookup.keys]
        timings.record_image_count(len(images), cache_hits=sum(image.cached for image in images))
        return images

    async def _wait_for(
        self, future: asyncio.Future[TokenizedImage | None], request: _Request, key: bytes, upload: Upload
    ) -> dict[bytes, TokenizedImage]:
        """The image that another request computes, by its key; nothing if that request was cancelled."""
        with request.timings.measure("shared"):
            await asyncio.wait({future}, timeout=max(0.0, request.deadline - time.monotonic()))
        if not future.done():
            raise DeadlineExceeded(lane="encode", stage="shared")
        if future.cancelled():
            return {}
        if (error := future.exception()) is not None:
            raise error.with_traceback(None)
        if (image := future.result()) is not None:
            self._metrics.cache_requests.labels("shared").inc()
            return {key: image}
        # It failed for the other request, perhaps for a reason that does not apply to this one.
        return await self._compute(request, {key: upload})

    async def _compute_uncached(self, request: _Request, uploads: Sequence[Upload]) -> list[TokenizedImage]:
        """Tokens without the cache: decoding threads write pixels straight into the batch."""
        deadline, timings = request.deadline, request.timings
        with await self._open_ticket(len(uploads), request) as ticket:
            sizes = await self._preprocessor.preprocess(uploads, timings, deadline=deadline, use=ticket.put)
            encoded = await ticket.result()
        timings.add_engine(encoded.timing)
        return [
            TokenizedImage(tokens, code, size, cached=False)
            for (tokens, code), size in zip(self._codes(encoded, request.space), sizes, strict=True)
        ]

    async def _compute_shared(self, request: _Request, wanted: Mapping[bytes, Upload]) -> dict[bytes, TokenizedImage]:
        """Computes images in single-flight: ends the computations in progress of all ``wanted`` keys."""
        images: dict[bytes, TokenizedImage] = {}
        shared_error: Exception | None = None
        abandoned = False
        try:
            images = await self._compute_claimed(request, wanted)
        except (DeviceFailed, WorkerCrashed) as error:
            # An image that fails on a device fails again; of several images nobody knows which one failed.
            shared_error = error if len(wanted) == 1 else None
            raise
        except (asyncio.CancelledError, DeadlineExceeded):
            abandoned = True
            raise
        finally:
            for key in wanted:
                self._in_progress.finish(key, result=images.get(key), error=shared_error, abandoned=abandoned)
        return images

    async def _compute_claimed(self, request: _Request, wanted: Mapping[bytes, Upload]) -> dict[bytes, TokenizedImage]:
        """Computes images, except those that another process has claimed: waits for these until the claim expires."""
        found: dict[bytes, TokenizedImage] = {}
        until = min(request.deadline, time.monotonic() + self._claim_seconds)
        pause = _FIRST_PAUSE
        while missing := [key for key in wanted if key not in found]:
            with request.timings.measure("cache"):
                claims = dict(zip(missing, await self._cache.claim_many(missing), strict=True))
            for key, claim in claims.items():
                if (
                    claim.known is not None
                    and (image := self._validated(claim.known, request.space, "hit")) is not None
                ):
                    found[key] = image
            is_over = time.monotonic() >= until
            own = [key for key, claim in claims.items() if key not in found and (claim.is_own or is_over)]
            try:
                if own:
                    found |= await self._compute(request, {key: wanted[key] for key in own})
                elif len(found) < len(wanted):
                    with request.timings.measure("shared"):
                        await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
            finally:
                # Claims end with the values computed; for values that were found they are not needed.
                await self._cache.release_many(list(wanted) if len(found) == len(wanted) else own)
        return found

    async def _compute(self, request: _Request, wanted: Mapping[bytes, Upload]) -> dict[bytes, TokenizedImage]:
        """Tokens of uploads by their keys. Looks up the digests of their pixels, and writes both keys to the cache."""
        timings, space = request.timings, request.space
        pixels: dict[int, Pixels] = {}
        keys: dict[int, bytes] = {}

        def keep(index: int, image: Pixels) -> None:
            pixels[index] = image
            keys[index] = space.pixels(hashlib.sha256(np.ascontiguousarray(image).data).digest())

        async def encode(ticket: EncodeTicket) -> EngineTokens:
            for row, index in enumerate(new):
                ticket.put(row, pixels[index])
            return await ticket.result()

        encoded: EngineTokens | None = None
        # Admission first: a full queue refuses before any work is done.
        with await self._open_ticket(len(wanted), request) as ticket:
            sizes = await self._preprocessor.preprocess(
                list(wanted.values()), timings, deadline=request.deadline, use=keep
            )
            with timings.measure("cache"):
                results = await self._get_many([keys[index] for index in range(len(wanted))], space, "pixels")
            new = [index for index, result in enumerate(results) if result is None]
            if len(new) == len(wanted):
                encoded = await encode(ticket)
        if 0 < len(new) < len(wanted):
            with await self._open_ticket(len(new), request) as ticket:  # fewer images than were just released
                encoded = await encode(ticket)
        if encoded is not None:
            timings.add_engine(encoded.timing)
            for index, (tokens, code) in zip(new, self._codes(encoded, space), strict=True):
                results[index] = TokenizedImage(tokens, code, sizes[index], cached=False)
        # The same pixels may come from files of different sizes.
        images = [replace(result, original_size=size) for result, size in zip(results, sizes, strict=True) if result]
        entries = [CachedCode(image.packed, image.original_size) for image in images]
        await self._cache.put_many(
            [*zip(wanted, entries, strict=True), *((keys[index], entries[index]) for index in new)]
        )
        return dict(zip(wanted, images, strict=True))

    def _codes(self, encoded: EngineTokens, space: KeySpace) -> list[tuple[Sequence[int], bytes]]:
        """The ids of each image, and the same packed."""
        if space.latents:
            return [((), row.astype("<f4", copy=False).tobytes()) for row in encoded.tokens]
        packed = self._models.info.code_format.pack(encoded.tokens)
        return [(tokens, code.tobytes()) for tokens, code in zip(encoded.tokens.tolist(), packed, strict=True)]

    async def _open_ticket(self, count: int, request: _Request) -> EncodeTicket:
        return await self._engine.open_encode(
            count,
            image_size=self._models.info.image_size,
            deadline=request.deadline,
            latents=request.space.latents,
        )

    async def _get_many(
        self, keys: Sequence[bytes], space: KeySpace, result: Literal["hit", "pixels", "lookup"]
    ) -> list[TokenizedImage | None]:
        return [self._validated(entry, space, result) for entry in await self._cache.get_many(keys)]

    def _validated(
        self, entry: CachedCode | None, space: KeySpace, result: Literal["hit", "pixels", "lookup"]
    ) -> TokenizedImage | None:
        """A cached entry if it is a code of this tokenizer, or latents; counts hits, and misses of the last look-up."""
        if entry is not None:
            ids_of = self._latent_ids_of if space.latents else self._models.info.code_format.ids_of
            if (tokens := ids_of(entry.code)) is not None:
                self._metrics.cache_requests.labels(result).inc()
                return TokenizedImage(tokens, entry.code, entry.original_size, cached=True)
        if result == "pixels":
            self._metrics.cache_requests.labels("miss").inc()
        return None

    def _latent_ids_of(self, packed: bytes) -> Sequence[int] | None:
        """Latents have no ids; None for bytes that are no latents."""
        return () if self._models.info.latent_format.has_length(packed) else None
