"""What encode and reconstruct share: uploads to tokens, through the cache where the bytes have been seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.codes import CodeError
from models.preprocess import eval_crop
from service.cache import CachedCode, cache_key
from service.context import ServiceContext
from service.media import DecodedImage, MediaLimits, decode_image
from service.stages import Stages
from service.uploads import Upload

__all__ = ["Preprocessed", "TokenizedImage", "preprocess", "tokenize"]


@dataclass(frozen=True)
class Preprocessed:
    """An upload as the tokenizer sees it: ``pixels`` uint8 [S, S, 3]."""

    pixels: npt.NDArray[np.uint8]
    original_size: tuple[int, int]


@dataclass(frozen=True)
class TokenizedImage:
    """Ids int64 [K] of an upload, and whether the cache knew them; if not, the ``pixels`` they were made from."""

    tokens: npt.NDArray[np.int64]
    original_size: tuple[int, int]
    cached: bool
    pixels: npt.NDArray[np.uint8] | None = None


def _preprocess(upload: Upload, limits: MediaLimits, size: int) -> tuple[Preprocessed, DecodedImage]:
    decoded = decode_image(upload.data, limits=limits, pointer=upload.pointer, declared=upload.declared)
    return Preprocessed(eval_crop(decoded.image, size), decoded.original_size), decoded


async def preprocess(context: ServiceContext, uploads: Sequence[Upload], stages: Stages) -> list[Preprocessed]:
    """Decodes, resizes and crops uploads in threads. Raises the problem of the first bad one."""
    limits = MediaLimits(max_pixels=context.settings.max_pixels)
    size = context.facts.image_size

    def work(upload: Upload) -> Preprocessed:
        watch = Stages()
        result, decoded = _preprocess(upload, limits, size)
        context.metrics.preprocess.labels(decoded.format).observe(watch.total)
        return result

    with stages.measure("preprocess"):
        return await context.map_in_threads(work, [(upload,) for upload in uploads])


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
        images = await preprocess(context, [uploads[index] for index in missing], stages)
        with context.engine_call():
            encoded = await context.engine.encode(np.stack([image.pixels for image in images]), deadline=deadline)
        context.note_timing(stages, encoded.timing)
        for index, image, ids in zip(missing, images, encoded.tokens, strict=True):
            results[index] = TokenizedImage(ids, image.original_size, cached=False, pixels=image.pixels)
        packed = facts.code_format.pack(encoded.tokens)
        await context.cache.put_many(
            [
                (keys[index], CachedCode(row.tobytes(), image.original_size))
                for index, image, row in zip(missing, images, packed, strict=True)
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
