"""What encode and reconstruct share: uploads to tokens, through the cache where the image has been seen.

::

    upload's digest known? ── no ──> room in the lane ──> decode ──> pixels' digest known? ── no ──> device
            │ yes                                                          │ yes                       │
            └──────────────── tokens <─────────────────────────────────────┴───────────────────────────┘
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from models.preprocess import eval_crop
from service.api.uploads import Upload
from service.cache import CachedCode, KeySpace
from service.engine import Encoded, EncodeTicket
from service.http.problems import DeadlineExceeded, InternalError, Problem, WorkerCrashed
from service.imaging.media import MediaLimits, decode_image
from service.operations.context import ServiceContext, TokenizedImage
from service.telemetry.timings import RequestTimings

__all__ = ["Recalled", "TokenizedImage", "look_up", "preprocess", "recall", "tokenize", "tokenize_recalled"]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.05
Pixels = npt.NDArray[np.uint8]


async def preprocess(
    context: ServiceContext, uploads: Sequence[Upload], timings: RequestTimings, *, use: Callable[[int, Pixels], None]
) -> list[tuple[int, int]]:
    """Decodes, resizes and crops uploads in threads, where ``use`` is given the index and the pixels uint8 [S, S, 3] of
    each; gives their original sizes. Raises the problem of the first bad one.
    """
    limits = MediaLimits(max_pixels=context.settings.max_pixels)
    size = context.model_info.image_size

    def work(index: int, upload: Upload) -> tuple[int, int]:
        watch = RequestTimings()
        with context.decoding_memory.lease() as reserve:
            decoded = decode_image(
                upload.data, limits=limits, pointer=upload.pointer, declared=upload.declared, reserve=reserve
            )
            pixels = eval_crop(decoded.image, size)
            original_size, image_format = decoded.original_size, decoded.format
            del decoded  # its memory goes before another image may have it
        context.metrics.preprocess.labels(image_format).observe(watch.total)
        use(index, pixels)
        return original_size

    with timings.measure("preprocess"):
        return await context.map_in_threads(work, list(enumerate(uploads)))


@dataclass(frozen=True)
class _Run:
    """What all steps of a request share."""

    context: ServiceContext
    space: KeySpace
    deadline: float
    timings: RequestTimings


@dataclass(frozen=True)
class Recalled:
    """Uploads, which have their names in ``space``, and those that the cache knew by the digest of their bytes."""

    uploads: Sequence[Upload]
    space: KeySpace
    keys: Sequence[bytes]
    found: Mapping[bytes, TokenizedImage]

    @property
    def images(self) -> list[TokenizedImage] | None:
        """All of them, if all were known."""
        return [self.found[key] for key in self.keys] if self.keys and self.found.keys() >= set(self.keys) else None


async def recall(
    context: ServiceContext, uploads: Sequence[Upload], *, space: KeySpace, timings: RequestTimings
) -> Recalled:
    """Looks up uploads. Takes no longer than the cache may, so that nobody need watch whether the client is still there."""
    timings.record_image_count(len(uploads))
    if context.settings.cache == "off":
        return Recalled(uploads, space, (), {})
    with timings.measure("cache"):
        keys = [space.upload(hashlib.sha256(upload.data).digest()) for upload in uploads]
        asked = list(dict.fromkeys(keys))
        known = await _known(context, asked, "hit")
    found = {key: image for key, image in zip(asked, known, strict=True) if image}
    if found:
        timings.record_image_count(len(uploads), cache_hits=sum(key in found for key in keys))
    return Recalled(uploads, space, keys, found)


async def tokenize(
    context: ServiceContext, uploads: Sequence[Upload], *, space: KeySpace, deadline: float, timings: RequestTimings
) -> list[TokenizedImage]:
    """Tokens of uploads. What the cache knows is neither decoded nor queued, and what is being computed for another
    request, or stands twice in this one, is computed once.
    """
    recalled = await recall(context, uploads, space=space, timings=timings)
    return recalled.images or await tokenize_recalled(context, recalled, deadline=deadline, timings=timings)


async def tokenize_recalled(
    context: ServiceContext, recalled: Recalled, *, deadline: float, timings: RequestTimings
) -> list[TokenizedImage]:
    """``tokenize`` for uploads that were looked up and are not all known."""
    if context.settings.cache == "off":
        return await _compute_all(context, recalled.uploads, deadline=deadline, timings=timings)
    run = _Run(context, recalled.space, deadline, timings)
    keys, found = recalled.keys, dict(recalled.found)
    # Of equal ones the first: problems point to it.
    wanted = dict(zip(reversed(keys), reversed(recalled.uploads), strict=True))
    while missing := [key for key in dict.fromkeys(keys) if key not in found]:
        flights = {key: context.flights.join(key) for key in missing}
        own = {key: wanted[key] for key, flight in flights.items() if flight is None}
        if own:
            found |= await _fly(run, own)
        for key, flight in flights.items():
            if flight is None:
                continue
            with timings.measure("shared"):
                in_time = await flight.wait(deadline)
            if not in_time:
                raise DeadlineExceeded("The answer was not ready in time: another request's image took too long.")
            if flight.problem is not None:
                raise flight.problem.with_traceback(None)
            if flight.result is not None:
                context.metrics.cache_requests.labels("shared").inc()
                found[key] = flight.result
            elif not flight.abandoned:
                # It failed for the other request, perhaps by something that is not true of this one.
                found |= await _compute(run, {key: wanted[key]})
    images = [found[key] for key in keys]
    timings.record_image_count(len(images), cache_hits=sum(image.cached for image in images))
    return images


async def _compute_all(
    context: ServiceContext, uploads: Sequence[Upload], *, deadline: float, timings: RequestTimings
) -> list[TokenizedImage]:
    """Tokens of uploads, none of which is looked up or remembered; their pixels are written where the batch gathers."""
    size = context.model_info.image_size
    with (
        context.engine_call(),
        context.engine.open_encode(len(uploads), image_size=size, deadline=deadline) as ticket,
    ):
        sizes = await preprocess(context, uploads, timings, use=ticket.put)
        encoded = await ticket.result()
    context.note_timing(timings, encoded.timing)
    packed = context.model_info.code_format.pack(encoded.tokens)
    return [TokenizedImage(code.tobytes(), size, cached=False) for code, size in zip(packed, sizes, strict=True)]


async def _fly(run: _Run, wanted: Mapping[bytes, Upload]) -> dict[bytes, TokenizedImage]:
    """``_compute`` for all who wait for the same."""
    images: dict[bytes, TokenizedImage] = {}
    problem: Problem | None = None
    abandoned = False
    try:
        images = await _compute_once(run, wanted)
    except (InternalError, WorkerCrashed) as error:
        # What one image does to a device it does again; of several nobody knows which it was.
        problem = error if len(wanted) == 1 else None
        raise
    except (asyncio.CancelledError, DeadlineExceeded):
        abandoned = True
        raise
    finally:
        for key in wanted:
            run.context.flights.land(key, result=images.get(key), problem=problem, abandoned=abandoned)
    return images


async def _compute_once(run: _Run, wanted: Mapping[bytes, Upload]) -> dict[bytes, TokenizedImage]:
    """``_compute``, unless another process is at it: then its result, if that comes before its claim runs out."""
    context, timings = run.context, run.timings
    found: dict[bytes, TokenizedImage] = {}
    until = min(run.deadline, time.monotonic() + context.settings.cache_lease)
    pause = _FIRST_PAUSE
    while missing := [key for key in wanted if key not in found]:
        with timings.measure("cache"):
            claims = dict(zip(missing, await context.cache.claim_many(missing), strict=True))
        for key, claim in claims.items():
            if claim.known is not None and (image := _from_cache(context, claim.known, "hit")) is not None:
                found[key] = image
        is_over = time.monotonic() >= until
        own = [key for key, claim in claims.items() if key not in found and (claim.is_own or is_over)]
        try:
            if own:
                found |= await _compute(run, {key: wanted[key] for key in own})
            elif len(found) < len(wanted):
                with timings.measure("shared"):
                    await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        finally:
            # Of what was computed the claims have ended; of what was known they are not needed.
            await context.cache.release_many(list(wanted) if len(found) == len(wanted) else own)
    return found


async def _compute(run: _Run, wanted: Mapping[bytes, Upload]) -> dict[bytes, TokenizedImage]:
    """Tokens of uploads whose bytes are new, by their keys; both are remembered, and what their pixels are."""
    context, space, timings = run.context, run.space, run.timings
    info, engine = context.model_info, context.engine
    count = len(wanted)
    seen: dict[int, Pixels] = {}
    digests: dict[int, bytes] = {}

    def keep(index: int, pixels: Pixels) -> None:
        seen[index] = pixels
        digests[index] = hashlib.sha256(np.ascontiguousarray(pixels).data).digest()

    def room_for(images: int) -> EncodeTicket:
        return engine.open_encode(images, image_size=info.image_size, deadline=run.deadline)

    async def encode(ticket: EncodeTicket) -> Encoded:
        for row, index in enumerate(new):
            ticket.put(row, seen[index])
        return await ticket.result()

    encoded: Encoded | None = None
    with context.engine_call():
        # Room first: a full queue is told at once, before any work is done, and decoded images have a place to go.
        with room_for(count) as ticket:
            sizes = await preprocess(context, list(wanted.values()), timings, use=keep)
            with timings.measure("cache"):
                results = await _known(context, [space.pixels(digests[index]) for index in range(count)], "pixels")
            new = [index for index, result in enumerate(results) if result is None]
            if len(new) == count:
                encoded = await encode(ticket)
        if 0 < len(new) < count:
            # Less room than was given back a moment ago.
            with room_for(len(new)) as ticket:
                encoded = await encode(ticket)
    if encoded is not None:
        context.note_timing(timings, encoded.timing)
        packed = info.code_format.pack(encoded.tokens)
        for index, code in zip(new, packed, strict=True):
            results[index] = TokenizedImage(code.tobytes(), sizes[index], cached=False)
    # A picture known by its pixels may have come in another size.
    images = [replace(result, original_size=size) for result, size in zip(results, sizes, strict=True) if result]
    entries = [CachedCode(image.packed, image.original_size) for image in images]
    await context.cache.put_many(
        [*zip(wanted, entries, strict=True), *((space.pixels(digests[index]), entries[index]) for index in new)]
    )
    return dict(zip(wanted, images, strict=True))


async def look_up(context: ServiceContext, digests: Sequence[bytes], space: KeySpace) -> list[TokenizedImage | None]:
    """What is known of uploads by the SHA-256 of their bytes, without any of them."""
    return await _known(context, [space.upload(digest) for digest in digests], "lookup")


async def _known(
    context: ServiceContext, keys: Sequence[bytes], found: Literal["hit", "pixels", "lookup"]
) -> list[TokenizedImage | None]:
    return [_from_cache(context, entry, found) for entry in await context.cache.get_many(keys)]


def _from_cache(
    context: ServiceContext, entry: CachedCode | None, found: Literal["hit", "pixels", "lookup"]
) -> TokenizedImage | None:
    """A cached code, checked as anything from outside; what does not fit counts as not known."""
    result = None
    if entry is not None and context.model_info.code_format.is_code(entry.code):
        result = TokenizedImage(entry.code, entry.original_size, cached=True)
    if result is not None:
        context.metrics.cache_requests.labels(found).inc()
    elif found == "pixels":
        context.metrics.cache_requests.labels("miss").inc()
    return result
