"""Limits of one image, checked on its header before any pixel is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, TiffImagePlugin

from service.errors import ErrorDetail
from service.imaging.errors import ImageTooLarge, UndecodableImage
from service.imaging.formats import ACCEPTED_FORMATS
from service.imaging.jpeg import has_more_scans


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """Limits of one image, checked before its pixels are decoded.

    Attributes:
        formats: keys of :data:`ACCEPTED_FORMATS` that are decoded.
        max_pixels: width x height of the first frame, as the header says.
        max_jpeg_scans: passes over the whole image. Encoders write about 10; a few bytes are enough for one more, which
            takes a tenth of the time of a whole decode.
        max_run_length_pixels: width x height of a run-length-encoded BMP. Pillow decodes these in Python.
    """

    formats: frozenset[str] = frozenset(ACCEPTED_FORMATS)
    max_pixels: int = 40_000_000
    max_jpeg_scans: int = 64
    max_run_length_pixels: int = 1_000_000


# Measured, see tests/service/imaging/test_memory.py. Opaque JPEG is held twice when it is turned upright; decoders of WebP,
# AVIF and HEIC hold frames of their own beside Pillow's.
_PEAK_BYTES_OF_A_PIXEL = {"JPEG": 9, "WEBP": 22}
_PEAK_BYTES_OF_A_MODE = {("JPEG", "CMYK"): 13, ("BMP", "RGBA"): 20, ("AVIF", "RGBA"): 24, ("HEIC", "RGBA"): 24}
_PROFILE_BYTES_OF_A_PIXEL = 8
_COEFFICIENT_BYTES_OF_A_PIXEL = 9
_SCANS_OF_ALL_COEFFICIENTS = 12
"""Scans of the largest JPEG image; a smaller one may have more, since each takes time in proportion to its coefficients."""
_REDUCED_PIXELS = 8
"""A JPEG image that is decoded at a reduced scale may have so many times the pixels: it takes time, but no memory."""


def peak_bytes(format_name: str, size: tuple[int, int], *, mode: str = "", has_profile: bool) -> int:
    """Bytes of memory that decoding takes at its peak, for ``size`` (width, height) and Pillow's ``mode``."""
    a_pixel = _PEAK_BYTES_OF_A_MODE.get((format_name, mode)) or _PEAK_BYTES_OF_A_PIXEL.get(format_name, 16)
    return size[0] * size[1] * (a_pixel + _PROFILE_BYTES_OF_A_PIXEL * has_profile)


def check_stream(data: bytes, format_name: str, limits: MediaLimits, pointer: str) -> tuple[int, int] | None:
    """Checks the canvas of a WebP image, which opening it allocates, and returns its (width, height)."""
    canvas = _webp_canvas(data) if format_name == "WEBP" else None
    if canvas is not None:
        _check_pixels(*canvas, limits.max_pixels, pointer)
    return canvas


def check_jpeg(
    data: bytes, stored_size: tuple[int, int], coefficient_bytes: int, limits: MediaLimits, pointer: str
) -> None:
    """Checks on a JPEG image of ``stored_size`` (width, height): memory and time of its scans."""
    width, height = stored_size
    _check_pixels(width, height, _REDUCED_PIXELS * limits.max_pixels, pointer)
    limit = _COEFFICIENT_BYTES_OF_A_PIXEL * limits.max_pixels
    if coefficient_bytes > limit:
        raise ImageTooLarge(
            f"The JPEG image of {width} x {height} pixels is progressive, and its coefficients need {coefficient_bytes} "
            f"bytes; the limit is {limit}. Scale it down, or save it as baseline JPEG.",
            errors=[ErrorDetail(pointer=pointer, detail="too many pixels", value=width * height)],
        )
    most = min(limits.max_jpeg_scans, _SCANS_OF_ALL_COEFFICIENTS * limit // max(1, coefficient_bytes))
    if has_more_scans(data, most):
        raise UndecodableImage(
            f"The JPEG image of {width} x {height} pixels has more than {most} scans. Save it anew, or as baseline JPEG.",
            errors=[ErrorDetail(pointer=pointer, detail="too many scans", expected=f"<= {most}")],
        )


def check_header(image: Image.Image, limits: MediaLimits, pointer: str) -> None:
    """Checks on an opened image, before its pixels are loaded. ``image.size`` is that at which it will be decoded."""
    _check_pixels(*image.size, limits.max_pixels, pointer)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # libtiff decodes whole tiles, and a tile may be larger than the image.
        tile_width, tile_height = (
            int(image.tag_v2.get(tag, 1)) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)
        )
        _check_pixels(tile_width, tile_height, limits.max_pixels, pointer)
    elif any(tile.codec_name == "bmp_rle" for tile in getattr(image, "tile", ())):
        _check_pixels(*image.size, limits.max_run_length_pixels, pointer, kind="run-length-encoded image")


def _check_pixels(width: int, height: int, limit: int, pointer: str, *, kind: str = "image") -> None:
    if width * height > limit:
        raise ImageTooLarge(
            f"The {kind} has {width} x {height} = {width * height} pixels; the limit is {limit}. Scale it down.",
            errors=[
                ErrorDetail(pointer=pointer, detail="too many pixels", value=width * height, expected=f"<= {limit}")
            ],
        )


def _webp_canvas(data: bytes) -> tuple[int, int] | None:
    """Canvas (width, height) of a WebP file: opening one allocates the canvas (RFC 9649, sections 2.5 to 2.7)."""
    chunk, payload = data[12:16], data[20:30]
    if chunk == b"VP8X" and len(payload) == 10:
        return int.from_bytes(payload[4:7], "little") + 1, int.from_bytes(payload[7:10], "little") + 1
    if chunk == b"VP8 " and len(payload) == 10:
        return int.from_bytes(payload[6:8], "little") & 0x3FFF, int.from_bytes(payload[8:10], "little") & 0x3FFF
    if chunk == b"VP8L" and len(payload) >= 5:
        bits = int.from_bytes(payload[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None
