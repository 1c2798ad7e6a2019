"""The crops of an image that become tokens."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from models.preprocess import ten_crop
from service.bulk.errors import BulkError
from service.imaging.decoding import DecodedImage

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
