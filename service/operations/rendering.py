"""Token ids or latents to image files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from PIL import Image

from models.arrays import Ids, Latents, Pixels
from models.codes.code_format import lengths_of
from service.engine import Engine
from service.imaging.encoding import OUTPUT_EXTENSIONS, encode_image
from service.operations.image_threads import ImageThreads
from service.telemetry.metrics import Metrics
from service.telemetry.timings import RequestTimings

SIDES = range(16, 2049)
"""Pixels of a side that an image can be scaled to."""


@dataclass(frozen=True)
class RenderedImages:
    """Images uint8 [B, S, S, 3], and each as a file."""

    pixels: Pixels
    files: list[bytes]


class Renderer:
    """Decodes tokens with the engine, and encodes the images as files in threads."""

    def __init__(self, *, engine: Engine, threads: ImageThreads, metrics: Metrics) -> None:
        self._engine = engine
        self._threads = threads
        self._metrics = metrics
        for image_format in (*OUTPUT_EXTENSIONS.values(), "raw"):
            metrics.render.labels(image_format)

    async def render(
        self,
        tokens: Ids | Latents,
        media_type: str,
        quality: int | None,
        *,
        deadline: float,
        timings: RequestTimings,
        side: int | None = None,
    ) -> RenderedImages:
        """Ids int64 [B, K] with ``PAD``, or a VAE's latents float32 [B, K, C], to images; the files are scaled to ``side``
        pixels if it is given. Raises ``EngineError``.
        """
        timings.record_image_count(len(tokens))
        if tokens.dtype == np.int64:
            self._metrics.count_tokens("decode", lengths_of(cast("Ids", tokens)))
        decoded = await self._engine.decode(tokens, deadline=deadline)
        timings.add_engine(decoded.timing)

        def encode(pixels: Pixels) -> bytes:
            watch = RequestTimings()
            file = encode_image(_scaled(pixels, side), media_type, quality=quality)
            self._metrics.render.labels(OUTPUT_EXTENSIONS.get(media_type, "raw")).observe(watch.total)
            return file

        with timings.measure("encode"):
            calls = [(pixels,) for pixels in decoded.images]
            files = await self._threads.map(encode, calls, deadline=deadline, urgent=True)
        return RenderedImages(decoded.images, files)


def _scaled(pixels: Pixels, side: int | None) -> Pixels:
    if side is None or side == len(pixels):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))
