"""One photograph: the bytes of a file become S x S pixels, as every other image of this project does."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from models.preprocess import crop_at, eval_crop, to_rgb

__all__ = ["IMAGE_SUFFIXES", "decode_image"]

IMAGE_SUFFIXES = ("webp", "jpg", "jpeg", "png")

# Files are named .jpg that are not JPEG (ImageNet has them); these are the formats with nothing to run in them.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


def decode_image(data: bytes, size: int, place: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """Upright, over white, shorter side to S = ``size``, and a square of it: uint8 [S, S, 3] RGB.

    The centre square, or the one at ``place`` (see :func:`models.preprocess.crop_at`). A photograph that is S x S
    comes through pixel by pixel. Raises ``ValueError`` for bytes that are no whole image.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            rgb = to_rgb(image)
    except UnidentifiedImageError:
        raise ValueError("cannot identify an image in it") from None
    except Exception as error:  # on damaged bytes Pillow raises nearly every type there is
        raise ValueError(str(error) or type(error).__name__) from error
    return eval_crop(rgb, size) if place is None else crop_at(rgb, size, place)
