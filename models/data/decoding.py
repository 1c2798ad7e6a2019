"""Decodes one image file to S x S pixels with the preprocessing that the tokenizer uses."""

import io

from PIL import Image, UnidentifiedImageError

from models.arrays import Pixels
from models.preprocess import crop_at, eval_crop, to_rgb, uncropped

IMAGE_SUFFIXES = ("webp", "jpg", "jpeg", "png")

# Some files named .jpg are not JPEG (ImageNet has them). None of these formats can execute code.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


def decode_image(data: bytes, size: int, position: tuple[float, float] | None = None) -> Pixels:
    """File bytes -> uint8 [S, S, 3] RGB, S = ``size``: EXIF orientation applied, over white, resized and cropped.

    The centre crop, or the crop at ``position`` (see :func:`models.preprocess.crop_at`). An S x S image is returned
    unchanged. Raises ``ValueError`` for bytes that are not a complete image.
    """
    rgb = _read(data)
    return eval_crop(rgb, size) if position is None else crop_at(rgb, size, position)


def decode_uncropped(data: bytes, size: int) -> Pixels:
    """As :func:`decode_image`, without the crop: uint8 [H, W, 3] (see :func:`models.preprocess.uncropped`)."""
    return uncropped(_read(data), size)


def _read(data: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return to_rgb(image)
    except UnidentifiedImageError:
        raise ValueError("cannot identify the image format") from None
    except Exception as error:  # Pillow raises nearly any exception type for damaged bytes
        raise ValueError(str(error) or type(error).__name__) from error
