"""Which squares of an image become tokens.

============  =====  ==============================================================================================
crops         views  what they are
============  =====  ==============================================================================================
centre            1  the centre square, as ``POST /v1/encode`` sees it
centre, flip      2  that one, and its mirror image
ten              10  the published pre-tokenization: corners (top left, top right, bottom left, bottom right) and centre
                     of a larger centre square, then the same five of the mirrored image
============  =====  ==============================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.preprocess import eval_crop, ten_crop
from service.bulk.errors import BulkError

__all__ = ["Crops", "Views"]

Crops = Literal["centre", "ten"]


@dataclass(frozen=True)
class Views:
    """A choice of squares. Raises ``BulkError`` where ``flip`` goes with ten crops, which are mirrored already."""

    crops: Crops = "centre"
    flip: bool = False

    def __post_init__(self) -> None:
        if self.crops == "ten" and self.flip:
            raise BulkError("ten crops are five and their mirror images: leave out --flip")

    @property
    def count(self) -> int:
        """How many squares an image has."""
        return 10 if self.crops == "ten" else 1 + self.flip

    def of(self, image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
        """An RGB image -> uint8 [count, S, S, 3], S = ``size``."""
        if self.crops == "ten":
            return ten_crop(image, size)
        centre = eval_crop(image, size)
        return np.stack([centre, centre[:, ::-1]] if self.flip else [centre])
