"""What encode and reconstruct share: uploads to tokens, through the cache where the bytes have been seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.codes import CodeError
from models.preprocess import eval_crop
from service.cache import CachedCode, cache_key
from service.context import ServiceContext
from service.media import MediaLimits, decode_image
from service.stages import Stages
from service.uploads import Upload

__all__ = ["TokenizedImage", "preprocess", "tokenize"]


@dataclass(frozen=True)
class TokenizedImage:
    """Ids int64 [K] of an upload, and whether the cache knew them."""

    tokens: npt.NDArray[np.int64]
    original_size: tuple[int, int]
    cached: bool


async def preprocess(
    context: ServiceContext,
    uploads: Sequence[Upload],
    stages: Stages,
    *,
    use: Callable[[int, npt.NDArray[np.uint8]], None],
) -> list[tuple[int, int]]:
    """Decodes, resizes and crops uploads in threads, where ``use`` is given the index and the pixels uint8 [S, S, 3] of
    each; gives their original sizes. Raises the problem of the first bad one.
    """
    limits = MediaLimits(max_pixels=context.settings.max_pixels)
    size = context.facts.image_size

    def work(index: int, upload: Upload) -> tuple[int, int]:
        watch = Stages()
        decoded = decode_image(upload.data, limits=limits, pointer=upload.pointer, declared=upload.declared)
        pixels = eval_crop(decoded.image, size)
        context.metrics.preprocess.labels(decoded.format).observe(watch.total)
        use(index, pixels)
        return decoded.original_size

    with stages.measure("preprocess"):
        return await context.map_in_threads(work, list(enumerate(uploads)))


async def tokenize(
    context: ServiceContext, uploads: Sequence[Upload], *, deadline: float, stages: Stages
) -> list[TokenizedImage]:
    """Tokens of uploads. What the cache knows is neither decoded nor queued."""
    facts = context.facts
    keys = [cache_key(upload.data, tokenizer=facts.name, revision=facts.revision) for upload in uploads]
    with stages.measure("cache"):
        results = [_from_cache(context, entry) for entry in await context.cache.get_many(keys)]
    missing = [index for index, result in enumerate(results) if result is None]
    if missing:
        # Room first: a full queue is told at once, before any work is done, and decoded images have a place to go.
        with (
            context.engine_call(),
            context.engine.open_encode(len(missing), image_size=facts.image_size, deadline=deadline) as ticket,
        ):
            sizes = await preprocess(context, [uploads[index] for index in missing], stages, use=ticket.put)
            encoded = await ticket.result()
        context.note_timing(stages, encoded.timing)
        for index, size, ids in zip(missing, sizes, encoded.tokens, strict=True):
            results[index] = TokenizedImage(ids, size, cached=False)
        packed = facts.code_format.pack(encoded.tokens)
        await context.cache.put_many(
            [
                (keys[index], CachedCode(row.tobytes(), size))
                for index, size, row in zip(missing, sizes, packed, strict=True)
            ]
        )
    return [result for result in results if result is not None]


def _from_cache(context: ServiceContext, entry: CachedCode | None) -> TokenizedImage | None:
    """A cached code, checked as anything from outside; what does not fit counts as not known."""
    result = None
    if entry is not None:
        try:
            ids = context.facts.code_format.from_bytes(entry.code)
        except CodeError:
            pass
        else:
            if len(ids) == 1:
                result = TokenizedImage(ids[0], entry.original_size, cached=True)
    context.metrics.cache_requests.labels("hit" if result else "miss").inc()
    return result
