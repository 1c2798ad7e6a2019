"""The options of a tokenization job, its crops, and its result."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from models.preprocess import ten_crop
from models.preprocessing_options import PUBLISHED, PreprocessingOptions
from service.bulk.entries import Source
from service.bulk.errors import BulkError
from service.cpu_quota import usable_cores
from service.imaging.decoding import DecodedImage

_CPU_BATCH, _GPU_BATCH = 16, 128


CropMode = Literal["centre", "ten"]


@dataclass(frozen=True)
class Crops:
    """The crops of an image that become tokens. Raises ``BulkError`` for ``flip`` with ten crops.

    ============  =====  ==============================================================================================
    mode          count  crops
    ============  =====  ==============================================================================================
    centre            1  the centre crop, as in ``POST /v1/encode``
    centre, flip      2  the centre crop and its mirror image
    ten              10  the published pre-tokenization: corners (top left, top right, bottom left, bottom right) and centre
                         of a larger centre crop, then the same five of the mirrored image
    ============  =====  ==============================================================================================
    """

    mode: CropMode = "centre"
    flip: bool = False

    def __post_init__(self) -> None:
        if self.mode == "ten" and self.flip:
            raise BulkError("ten crops include their mirror images: leave out --flip")

    @property
    def count(self) -> int:
        """Crops per image."""
        return 10 if self.mode == "ten" else 1 + self.flip

    def take(self, decoded: DecodedImage, size: int) -> npt.NDArray[np.uint8]:
        """An image -> uint8 [count, S, S, 3], S = ``size``."""
        if self.mode == "ten":
            return ten_crop(decoded.image, size)
        centre = decoded.crop(size)
        return np.stack([centre, centre[:, ::-1]] if self.flip else [centre])


@dataclass(frozen=True, kw_only=True)
class Job:
    """The options of ``titok tokenize``.

    ``shard_images``: entries per shard. ``batch_size``: most crops in a batch, which has at least one image; 0: depends on
    the device. ``threads`` decode, and on a CPU encode as well; 0: one per core. ``max_pixels``: limit for one image.
    ``preprocessing``: how images are decoded.
    """

    source: Source
    destination: Path
    tokenizer: str
    weights: str | None
    device: str
    dtype: str
    format: str
    crops: Crops
    shard_images: int
    batch_size: int
    threads: int
    max_pixels: int
    preprocessing: PreprocessingOptions = PUBLISHED

    def on(self, device_type: str) -> Self:
        """The job with the defaults for a device."""
        batch_size = self.batch_size or (_CPU_BATCH if device_type == "cpu" else _GPU_BATCH)
        return replace(self, batch_size=batch_size, threads=self.threads or usable_cores())

    @property
    def batch_images(self) -> int:
        """Images per batch."""
        return max(1, self.batch_size // self.crops.count)


@dataclass(frozen=True)
class Result:
    """Numbers of images with tokens, of images left out, and of shards in the destination, whichever run wrote them."""

    images: int
    broken: int
    shards: int
