"""Image files to RGB pixels.

::

    bytes ── sniff ──> format ── decode_image ──> DecodedImage (RGB, upright) ── models.preprocess ──> uint8 [S, S, 3]

The bytes are untrusted. The first of them decide the format, the header is checked against the limits before any
pixel is decoded, only the first frame is decoded, and every exception of Pillow becomes an ``ImageError``. Importing this
module changes Pillow's settings for the whole process: see the end of the file.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from PIL import AvifImagePlugin, Image, UnidentifiedImageError
from PIL import WebPImagePlugin as WebPImagePlugin  # registered at import, not by the first request that needs it

from models.preprocess import to_rgb
from service.errors import ErrorDetail
from service.imaging.errors import ImageError, UndecodableImage
from service.imaging.formats import sniff, unrecognised
from service.imaging.limits import MediaLimits, check_header, check_stream, peak_bytes


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """A decoded image as a viewer shows it.

    Attributes:
        image: mode RGB, upright, on white; loaded.
        original_size: (width, height) in pixels, after EXIF orientation.
        format: the format of the file; a key of :data:`ACCEPTED_FORMATS`.
    """

    image: Image.Image
    original_size: tuple[int, int]
    format: str


def decode_image(
    data: bytes,
    *,
    limits: MediaLimits,
    pointer: str = "body",
    declared: str | None = None,
    reserve: Callable[[int], None] = lambda _: None,
) -> DecodedImage:
    """Decode the first frame of an image of unknown origin. Safe to call from many threads at once.

    Args:
        data: the whole file. Its first bytes decide the format, not what was declared.
        limits: limits on pixels and scans.
        pointer: where the image is in the request, for the error's details.
        declared: the Content-Type that came with the bytes, named in the error message.
        reserve: is called once, with the bytes of memory that file and decoding take at most, before decoding takes
            them. What it raises is passed on.

    Raises:
        UndecodableImage: empty, truncated, corrupt, or not an image.
        UnsupportedImageFormat: an image of a known format that is not supported.
        ImageTooLarge: a limit is exceeded.
    """
    format_name = sniff(data)
    if format_name is None:
        raise unrecognised(data, pointer, declared)
    _ignore_pillow_warnings()
    is_corrupt = partial(_as_corrupt, format_name, pointer)
    with is_corrupt():
        canvas = check_stream(data, format_name, limits, pointer)
    if canvas is not None:
        reserve(len(data) + peak_bytes(format_name, *canvas))
    with is_corrupt():
        image = Image.open(io.BytesIO(data), formats=[format_name])
    with image:
        with is_corrupt():
            check_header(image, limits, pointer)
        if canvas is None:
            reserve(len(data) + peak_bytes(format_name, *image.size))
        with is_corrupt():
            rgb = to_rgb(image)
    return DecodedImage(image=rgb, original_size=rgb.size, format=format_name)


@contextmanager
def _as_corrupt(format_name: str, pointer: str) -> Iterator[None]:
    """Turns exceptions of Pillow into ``UndecodableImage``; on hostile bytes it raises nearly every type."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        raise _corrupt(error, format_name, pointer) from error


def _corrupt(error: Exception, format_name: str, pointer: str) -> UndecodableImage:
    # Pillow's words often help ("image file is truncated"), except where they are a Python object's address.
    words = "" if isinstance(error, UnidentifiedImageError) else str(error)[:200].rstrip(".")
    reason = words or "its header is damaged or cut off"
    return UndecodableImage(
        f"The bytes begin like {format_name} but cannot be decoded: {reason}.",
        errors=[ErrorDetail(pointer=pointer, detail=reason)],
    )


# Process-wide settings of Pillow: pixels are limited per call by MediaLimits; AVIF decodes in one thread, since images
# are decoded in parallel; what Pillow logs about a file is in the error message already.
Image.MAX_IMAGE_PIXELS = None
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
logging.getLogger("PIL").setLevel(logging.CRITICAL)

_PILLOW_MODULES = r"PIL\."


def _ignore_pillow_warnings() -> None:
    """Suppress Pillow's warnings about damaged metadata. ``warnings.catch_warnings`` is not thread-safe."""
    action, message, _, module, _ = warnings.filters[0] if warnings.filters else (None,) * 5
    if action != "ignore" or message is not None or getattr(module, "pattern", module) != _PILLOW_MODULES:
        warnings.filterwarnings("ignore", module=_PILLOW_MODULES)
