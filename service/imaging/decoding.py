"""Image files to RGB pixels.

::

    bytes ── sniff ──> format ── decode_image ──> DecodedImage (RGB, upright) ── models.preprocess ──> uint8 [S, S, 3]

The bytes are untrusted. The first of them decide the format, the header is checked against the limits before any
pixel is decoded, only the first frame is decoded, and every exception of Pillow becomes an ``ImageError``. Metadata that
holds no pixels is removed first, so that it decides nothing. Importing this module changes Pillow's settings for the
whole process: see the end of the file.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from PIL import AvifImagePlugin, Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from models.arrays import Pixels
from models.preprocess import eval_crop_reduced, orientation_of, to_rgb
from models.preprocessing_options import PUBLISHED, PreprocessingOptions
from service.errors import ErrorDetail
from service.imaging.bmp import BitFieldsFile, has_bit_fields
from service.imaging.color import profile_of, to_srgb
from service.imaging.errors import ImageError, UndecodableImage, UnsupportedImageFormat, UnsupportedVariant
from service.imaging.formats import LINE_FEEDS_LOST, is_cut_off, lost_line_feeds, sniff, unrecognised
from service.imaging.gif import first_frame, over_white_screen
from service.imaging.heif import HEIF_CLASS
from service.imaging.jpeg import open_jpeg
from service.imaging.limits import MediaLimits, check_header, check_jpeg, check_stream, peak_bytes
from service.imaging.png import PngFile, load_png, split_png
from service.imaging.tiff import TiffFile, load_tiff

_CLASSES: Mapping[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffFile,
    **({} if HEIF_CLASS is None else {"HEIC": HEIF_CLASS}),
}
_LEAST_SCALE = 4
"""A reduced image is at least so many times as large as the crop, so that resampling decides the pixels."""
_UNSUPPORTED_BMP = "Unsupported BMP"
"""Begins Pillow's messages on header, depth and compression."""
_TURNED = frozenset({5, 6, 7, 8})
"""Orientations that exchange width and height."""


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """A decoded image as a viewer shows it.

    Attributes:
        image: mode RGB, upright, on white; loaded.
        original_size: (width, height) in pixels, after EXIF orientation; more than ``image`` if that was reduced.
        format: the format of the file; a key of :data:`ACCEPTED_FORMATS`.
        orientation: the orientation in EXIF from which a reduced image was turned.
    """

    image: Image.Image
    original_size: tuple[int, int]
    format: str
    orientation: int = 1

    def crop(self, size: int) -> Pixels:
        """The crop of the published evaluation: uint8 [S, S, 3], S = ``size``."""
        ends_first = self.orientation in {2, 3, 6, 7}, self.orientation in {3, 4, 7, 8}
        return eval_crop_reduced(self.image, size, self.original_size, ends_first)


def decode_image(
    data: bytes,
    *,
    limits: MediaLimits,
    pointer: str = "body",
    declared: str | None = None,
    reserve: Callable[[int], None] = lambda _: None,
    options: PreprocessingOptions = PUBLISHED,
    size: int | None = None,
) -> DecodedImage:
    """Decode the first frame of an image of unknown origin. Safe to call from many threads at once.

    With ``options.jpeg_scale`` ``auto`` and a ``size``, a JPEG image is decoded at a half, a quarter or an eighth of its
    size where that leaves at least four times ``size``, and may have up to eight times the pixels of ``limits``.

    Args:
        data: the whole file. Its first bytes decide the format.
        pointer: where the image is in the request, for the error's details.
        declared: the Content-Type that came with the bytes, named in the error message.
        reserve: is called once, before decoding, with the most bytes that file and decoding take; may raise.
        options: which colors and which scale.
        size: the side of the crop that will be taken, in pixels.

    Raises:
        UndecodableImage: empty, truncated, corrupt, or not an image.
        UnsupportedImageFormat: an image of a known format that is not supported.
        ImageTooLarge: a limit is exceeded.
    """
    format_name = sniff(data)
    if format_name not in limits.formats:
        raise unrecognised(data, pointer, declared, limits.formats)
    refuse = partial(_refusals, data, format_name, pointer)
    is_srgb = options.color == "srgb"
    with refuse():
        canvas = check_stream(data, format_name, limits, pointer)
    if canvas is not None:
        reserve(2 * len(data) + peak_bytes(format_name, canvas, has_profile=is_srgb and data[30:34] == b"ICCP"))
    with refuse():
        file = _open(data, format_name)
    with file.image as image:
        with refuse():
            stored_size = _scale_and_check(file, data, limits, pointer, size if options.jpeg_scale == "auto" else None)
            profile = profile_of(image, data, file.png.color if file.png else {}) if is_srgb else None
        if canvas is None:
            peak = peak_bytes(format_name, image.size, mode=image.mode, has_profile=profile is not None)
            reserve(2 * len(data) + peak + file.coefficient_bytes)
        with refuse():
            rgb, orientation = _load(file, data, profile, size)
    shown_size = stored_size[::-1] if orientation in _TURNED else stored_size
    return DecodedImage(image=rgb, original_size=shown_size, format=format_name, orientation=orientation)


@dataclass(frozen=True)
class _OpenFile:
    """``coefficient_bytes``: memory for a JPEG of several scans."""

    image: ImageFile.ImageFile
    coefficient_bytes: int = 0
    png: PngFile | None = None


def _open(data: bytes, format_name: str) -> _OpenFile:
    """Opens a file with the class of its format: ``Image.open`` hides why a class refuses one."""
    _ignore_pillow_warnings()
    image_class = _CLASSES[format_name]
    if format_name == "PNG":
        png = split_png(data)
        return _OpenFile(image_class(io.BytesIO(png.pixels), ""), png=png)
    if format_name == "JPEG":
        jpeg = open_jpeg(data)
        image = image_class(io.BytesIO(jpeg.pixels), "")
        image.info["icc_profile"] = jpeg.profile
        return _OpenFile(image, jpeg.coefficient_bytes)
    if format_name == "BMP" and has_bit_fields(data):
        image_class = BitFieldsFile
    try:
        return _OpenFile(image_class(io.BytesIO(data), ""))
    except Exception as error:
        if format_name == "AVIF" and data[8:12] == b"mif3":
            raise UnsupportedVariant("AVIF with a minimized header", "AVIF of the brand 'avif'") from error
        if str(error).startswith(_UNSUPPORTED_BMP):
            raise UnsupportedVariant(
                str(error).replace(_UNSUPPORTED_BMP, "BMP of"), "BMP of 1, 4, 8, 16, 24 or 32 bits"
            ) from error
        raise


def _scale_and_check(
    file: _OpenFile, data: bytes, limits: MediaLimits, pointer: str, size: int | None
) -> tuple[int, int]:
    """Chooses the scale of a JPEG image for a crop of ``size``, checks the header, and returns the stored size."""
    stored_size = file.image.size
    if size is not None:
        file.image.draft(None, (_LEAST_SCALE * size,) * 2)  # does nothing unless it is a JPEG image
    if file.image.format == "JPEG":
        check_jpeg(data, stored_size, file.coefficient_bytes, limits, pointer)
    check_header(file.image, limits, pointer)
    return stored_size


def _load(file: _OpenFile, data: bytes, profile: bytes | None, size: int | None) -> tuple[Image.Image, int]:
    """The upright RGB image, and the orientation from which it was turned."""
    image: Image.Image = file.image
    if isinstance(image, GifImageFile) and (frame := first_frame(data)) is not None:
        is_empty = 0 in frame[2:]
        return over_white_screen(Image.new("RGB", image.size) if is_empty else to_rgb(image), frame), 1
    if isinstance(image, TiffFile):
        image = load_tiff(image)
    if isinstance(image, PngImageFile) and file.png is not None:
        image = load_png(image, file.png)
    if profile is not None:
        image.load()
        image = to_srgb(image, profile, size)
    image.load()
    orientation = orientation_of(image)
    return to_rgb(image), orientation


@contextmanager
def _refusals(data: bytes, format_name: str, pointer: str) -> Iterator[None]:
    """Turns exceptions of Pillow into ``ImageError``; on hostile bytes it raises nearly every type."""
    try:
        yield
    except ImageError:
        raise
    except UnsupportedVariant as error:
        entry = ErrorDetail(pointer=pointer, detail="unsupported variant", value=error.variant, expected=error.accepted)
        raise UnsupportedImageFormat(str(error), errors=[entry]) from error
    except Exception as error:
        reason = _reason(error, data, format_name)
        raise UndecodableImage(
            f"The {format_name} image cannot be decoded: {reason}.",
            errors=[ErrorDetail(pointer=pointer, detail=reason, expected=f"a whole {format_name} file")],
        ) from error


def _reason(error: Exception, data: bytes, format_name: str) -> str:
    words = str(error)[:200].rstrip(".")
    if lost_line_feeds(data):
        return f"it is {LINE_FEEDS_LOST}"
    if is_cut_off(data, format_name) or "truncat" in words.lower() or "end of stream" in words.lower():
        return "it is truncated; send the whole file"
    if words.startswith("decoder error"):  # of libtiff, which gives a number only
        return "its pixel data is damaged or cut off"
    if not words or isinstance(error.__cause__ or error, (EOFError, IndexError, KeyError, TypeError, struct.error)):
        return "its header is damaged or cut off"
    return words


def accept_truncated_images(accept: bool) -> None:
    """Whether this process decodes what is there of an image that is cut off."""
    ImageFile.LOAD_TRUNCATED_IMAGES = accept


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
