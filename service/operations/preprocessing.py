"""Uploaded image files to the pixels that the tokenizer sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.arrays import Pixels
from service.engine import DeadlineExceeded
from service.imaging.decoding import accept_truncated_images, decode_image
from service.imaging.formats import ACCEPTED_FORMATS
from service.imaging.limits import MediaLimits
from service.operations.image_threads import ImageThreads
from service.operations.served_models import ServedModels
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.timings import RequestTimings


@dataclass(frozen=True, slots=True)
class Upload:
    """An uploaded image file: its ``declared`` media type if any, and the ``pointer`` to it for error details."""

    data: bytes
    declared: str | None
    pointer: str


class ImagePreprocessor:
    """Decodes, resizes and crops uploads in threads, as the settings say and within the memory of ``threads``."""

    def __init__(self, *, threads: ImageThreads, models: ServedModels, metrics: Metrics, settings: Settings) -> None:
        self._threads = threads
        self._models = models
        self._metrics = metrics
        for image_format in ACCEPTED_FORMATS:
            metrics.preprocess.labels(image_format)
        self._limits = MediaLimits(
            max_pixels=settings.max_pixels, formats=frozenset(settings.formats or ACCEPTED_FORMATS)
        )
        self._options = settings.preprocessing
        accept_truncated_images(settings.truncated == "accept")

    async def preprocess(
        self,
        uploads: Sequence[Upload],
        timings: RequestTimings,
        *,
        deadline: float,
        use: Callable[[int, Pixels], None],
    ) -> list[tuple[int, int]]:
        """Calls ``use`` with the index and the pixels uint8 [S, S, 3] of each upload, in a thread.

        Returns the original sizes (width, height). Raises the ``ImageError`` of the first bad upload, or as
        ``ImageThreads.map`` does.
        """
        size = self._models.info.image_size

        def work(index: int, upload: Upload) -> tuple[int, int]:
            watch = RequestTimings()
            decoded = decode_image(
                upload.data,
                limits=self._limits,
                pointer=upload.pointer,
                declared=upload.declared,
                reserve=self._threads.reserve,
                options=self._options,
                size=size,
            )
            self._threads.check()
            pixels = decoded.crop(size)
            self._metrics.preprocess.labels(decoded.format).observe(watch.total)
            use(index, pixels)
            return decoded.original_size

        with timings.measure("preprocess"):
            try:
                return await self._threads.map(work, list(enumerate(uploads)), deadline=deadline)
            except DeadlineExceeded:
                self._metrics.abandonments.labels("encode", "expired").inc(len(uploads))
                raise
