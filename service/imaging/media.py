"""Image bytes in, image bytes out.

::

    bytes ── sniff ──> format ── decode_image ──> DecodedImage (RGB, upright) ── models.preprocess ──> [S, S, 3] uint8
    [H, W, 3] uint8 ── encode_image ──> bytes of image/jpeg, image/png, image/webp, raw rows or .npy

Bytes come from strangers. The first of them decide the format, the header is checked against the limits before any
pixel is decoded, only the first frame is looked at, and whatever Pillow thinks of the rest ends as a ``Problem`` below
500. Importing this module sets Pillow up for the whole process: see the end of the section on decoding.
"""

from __future__ import annotations

import io
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import AvifImagePlugin, Image, TiffImagePlugin, UnidentifiedImageError
from PIL import WebPImagePlugin as WebPImagePlugin  # registered here, not by the first request that needs it

from models.preprocess import to_rgb
from service.http.problems import ContentTooLarge, Problem, ProblemDetail, UndecodableImage, UnsupportedMediaType

__all__ = [
    "ACCEPTED_FORMATS",
    "ACCEPTED_SUFFIXES",
    "DEFAULT_QUALITY",
    "OUTPUT_EXTENSIONS",
    "OUTPUT_MEDIA_TYPES",
    "DecodedImage",
    "MediaLimits",
    "decode_image",
    "encode_image",
    "sniff",
]

ACCEPTED_FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "JPEG": "image/jpeg",
        "PNG": "image/png",
        "WEBP": "image/webp",
        "AVIF": "image/avif",
        "GIF": "image/gif",
        "BMP": "image/bmp",
        "TIFF": "image/tiff",
    }
)
"""Format -> media type of everything :func:`decode_image` takes."""

ACCEPTED_SUFFIXES: frozenset[str] = frozenset({f".{name.lower()}" for name in ACCEPTED_FORMATS} | {".jpg", ".tif"})
"""How files of these formats are called, in lower case."""

OUTPUT_EXTENSIONS: Mapping[str, str] = MappingProxyType(
    {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp"},
)
"""Media type -> file extension of the pictures :func:`encode_image` makes."""

OUTPUT_MEDIA_TYPES: tuple[str, ...] = (*OUTPUT_EXTENSIONS, "application/octet-stream", "application/x-npy")
"""Everything :func:`encode_image` makes: pictures, raw uint8 RGB rows, and a ``.npy`` file."""

DEFAULT_QUALITY = 90
"""Of JPEG and WebP."""


# --- which format ----------------------------------------------------------------------------------------------------

_BMP_HEADER_SIZES = frozenset({12, 16, 40, 52, 56, 64, 108, 124})

_UNSUPPORTED_IMAGES: tuple[tuple[bytes, str], ...] = (
    (b"8BPS", "Photoshop (PSD)"),
    (b"\x00\x00\x01\x00", "icon (ICO)"),
    (b"\x00\x00\x02\x00", "cursor (CUR)"),
    (b"icns", "Apple icon (ICNS)"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"qoif", "QOI"),
    (b"DDS ", "DirectDraw surface (DDS)"),
    (b"FUJIFILMCCD-RAW", "camera raw"),
)

_NOT_IMAGES: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"\x28\xb5\x2f\xfd", "Zstandard-compressed data"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"RIFF", "a RIFF file that is not WebP"),
)

_BASE64_IMAGES = (b"data:", b"/9j/", b"iVBORw0KGgo", b"UklGR", b"R0lGOD", b"SUkqA", b"TU0AK")

_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


def sniff(data: bytes) -> str | None:
    """The image format that the first bytes announce.

    Args:
        data: the file, or at least its first 64 bytes.

    Returns:
        A key of :data:`ACCEPTED_FORMATS`, or None for anything else.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADER_SIZES:
        return "BMP"
    if data.startswith((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")):
        return "TIFF"
    brands = _brands(data)
    if brands and (brands[0] in {b"avif", b"avis"} or (brands[0] in {b"mif1", b"msf1"} and b"avif" in brands[1:])):
        return "AVIF"
    return None


def _brands(data: bytes) -> list[bytes]:
    """The major brand, then the compatible ones, of an ISO base media file."""
    if data[4:8] != b"ftyp":
        return []
    end = min(int.from_bytes(data[:4]), len(data), 256)
    return [data[8:12], *(data[start : start + 4] for start in range(16, end - 3, 4))]


def _unsupported_image(data: bytes) -> str | None:
    """Names the format of an image that is none of ours."""
    for signature, name in _UNSUPPORTED_IMAGES:
        if data.startswith(signature):
            return name
    if re.match(rb"P[1-7]\s", data):
        return "Netpbm (PBM, PGM, PPM)"
    if _text(data).startswith(b"<") and b"<svg" in data[:4096].lower():
        return "SVG"
    brands = _brands(data)
    if brands and brands[0] in _HEIF_BRANDS:
        return "HEIC"
    return None


def _looks_like(data: bytes) -> str:
    """What the first bytes of something that is no image look like."""
    for signature, name in _NOT_IMAGES:
        if data.startswith(signature):
            return name
    if data[4:8] == b"ftyp":
        return "a video"
    text = _text(data)
    if text.startswith(_BASE64_IMAGES):
        return "base64 text; send the bytes that it stands for"
    if text.lower().startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page"
    if text.startswith(b"<"):
        return "XML"
    if text.startswith((b"{", b"[")):
        return "JSON"
    if text.startswith(b"--"):
        return "a multipart form"
    if text and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in text):
        return "text"
    return f"no known format (first bytes: {data[:8].hex(' ')})"


def _text(data: bytes) -> bytes:
    return data[:256].removeprefix(b"\xef\xbb\xbf").lstrip()


# --- bytes -> picture ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """What one image may cost, checked before its pixels are decoded.

    Decoding holds 4 (JPEG) to 21 (WebP with transparency) bytes of memory for each pixel at its peak.

    Attributes:
        max_pixels: width x height of the first frame, as the header says.
        max_jpeg_scans: passes over the whole image. Encoders write about 10; a few bytes are enough for one more, which
            takes a tenth of the time of a whole decode.
        max_run_length_pixels: width x height of a run-length-encoded BMP. Pillow decodes these in Python.
    """

    max_pixels: int = 40_000_000
    max_jpeg_scans: int = 64
    max_run_length_pixels: int = 1_000_000


# JPEG is held twice only when it is turned upright; a WebP decoder holds frames of its own beside Pillow's.
_PEAK_BYTES_OF_A_PIXEL = {"JPEG": 8, "WEBP": 21}


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """A picture as a viewer shows it.

    Attributes:
        image: mode RGB, upright, on white; loaded.
        original_size: (width, height) in pixels, after EXIF orientation.
        format: what the bytes were; a key of :data:`ACCEPTED_FORMATS`.
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
        limits: what the image may cost.
        pointer: names the image's place in the request, for ``errors`` of the problem.
        declared: the Content-Type that came with the bytes, to be named in the message.
        reserve: is called once, with the bytes of memory that decoding will take at most, before it takes them.

    Raises:
        UndecodableImage: empty, truncated, corrupt, or not an image.
        UnsupportedMediaType: an image of a known format that is not taken.
        ContentTooLarge: a limit is exceeded.
    """
    format_name = sniff(data)
    if format_name is None:
        raise _unrecognised(data, pointer, declared)
    _ignore_pillow_warnings()
    try:
        canvas = _check_stream(data, format_name, limits, pointer)
        if canvas is not None:
            reserve(_peak_bytes(format_name, *canvas))
        with Image.open(io.BytesIO(data), formats=[format_name]) as image:
            _check_header(image, limits, pointer)
            if canvas is None:
                reserve(_peak_bytes(format_name, *image.size))
            rgb = to_rgb(image)
    except Problem:
        raise
    except Exception as error:  # on hostile bytes Pillow raises nearly every type there is
        raise _corrupt(error, format_name, pointer) from error
    return DecodedImage(image=rgb, original_size=rgb.size, format=format_name)


def _peak_bytes(format_name: str, width: int, height: int) -> int:
    return width * height * _PEAK_BYTES_OF_A_PIXEL.get(format_name, 16)


def _check_stream(data: bytes, format_name: str, limits: MediaLimits, pointer: str) -> tuple[int, int] | None:
    """The checks that must come before ``Image.open``, or that it leaves no trace for. Gives the canvas (width, height) of
    a WebP image, which opening it allocates.
    """
    canvas = _webp_canvas(data) if format_name == "WEBP" else None
    if canvas is not None:
        _check_pixels(*canvas, limits.max_pixels, pointer)
    if format_name == "JPEG" and _has_more_scans(data, limits.max_jpeg_scans):
        raise UndecodableImage(
            f"The JPEG image has more than {limits.max_jpeg_scans} scans. Save it anew, or as baseline JPEG.",
            errors=[ProblemDetail(pointer=pointer, detail="too many scans", expected=f"<= {limits.max_jpeg_scans}")],
        )
    return canvas


def _check_header(image: Image.Image, limits: MediaLimits, pointer: str) -> None:
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
        raise ContentTooLarge(
            f"The {kind} has {width} x {height} = {width * height} pixels; at most {limit} are taken. Scale it down.",
            errors=[
                ProblemDetail(pointer=pointer, detail="too many pixels", value=width * height, expected=f"<= {limit}")
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


# Markers that begin a segment or end the image; restart markers and stuffed zeros are part of a scan (ITU-T T.81, B.1).
_JPEG_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
_JPEG_END, _JPEG_SCAN = 0xD9, 0xDA


def _has_more_scans(data: bytes, limit: int) -> bool:
    """Whether the first image of a JPEG stream has more than ``limit`` scans."""
    scans, position = 0, 2
    while scans <= limit and (marker := _JPEG_MARKER.search(data, position)):
        code = marker[0][1]
        if code == _JPEG_END:
            break
        scans += code == _JPEG_SCAN
        length = int.from_bytes(data[marker.end() : marker.end() + 2])
        position = marker.end() + length
    return scans > limit


def _unrecognised(data: bytes, pointer: str, declared: str | None) -> Problem:
    accepted = ", ".join(ACCEPTED_FORMATS.values())
    if not data:
        detail = f"The image is empty. Send the bytes of one of: {accepted}."
        return UndecodableImage(detail, errors=[ProblemDetail(pointer=pointer, detail="empty", expected=accepted)])
    if (name := _unsupported_image(data)) is not None:
        entry = ProblemDetail(pointer=pointer, detail="image format not taken", value=name, expected=accepted)
        return UnsupportedMediaType(f"{name} images are not taken. Convert to one of: {accepted}.", errors=[entry])
    guess = _looks_like(data)
    although = f", declared as {declared[:80]}," if declared else ""
    entry = ProblemDetail(pointer=pointer, detail=f"not an image: looks like {guess}", expected=accepted)
    return UndecodableImage(
        f"The body{although} is not an image: it looks like {guess}. Expected: {accepted}.", errors=[entry]
    )


def _corrupt(error: Exception, format_name: str, pointer: str) -> UndecodableImage:
    # Pillow's words often help ("image file is truncated"), except where they are a Python object's address.
    words = "" if isinstance(error, UnidentifiedImageError) else str(error)[:200].rstrip(".")
    reason = words or "its header is damaged or cut off"
    return UndecodableImage(
        f"The bytes begin like {format_name} but cannot be decoded: {reason}.",
        errors=[ProblemDetail(pointer=pointer, detail=reason)],
    )


# Pillow's own settings are process-wide. Its pixel limit gives way to ours, which is per call and needs no warning; a
# decoder must not start a thread for each core, since images are decoded side by side; what Pillow logs about a file
# goes to its sender, in the problem.
Image.MAX_IMAGE_PIXELS = None
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
logging.getLogger("PIL").setLevel(logging.CRITICAL)

_PILLOW_MODULES = r"PIL\."


def _ignore_pillow_warnings() -> None:
    """Keep Pillow's remarks on damaged metadata of good pictures out of the log, and from being raised as errors.

    ``warnings.catch_warnings`` is no way: it is not safe between threads.
    """
    action, message, _, module, _ = warnings.filters[0] if warnings.filters else (None,) * 5
    if action != "ignore" or message is not None or getattr(module, "pattern", module) != _PILLOW_MODULES:
        warnings.filterwarnings("ignore", module=_PILLOW_MODULES)


# --- picture -> bytes ------------------------------------------------------------------------------------------------


def encode_image(pixels: npt.NDArray[np.uint8], media_type: str, *, quality: int | None = None) -> bytes:
    """Encode one picture. The same pixels and arguments give the same bytes.

    Args:
        pixels: uint8 ``[H, W, 3]``, RGB, 0..255.
        media_type: one of :data:`OUTPUT_MEDIA_TYPES`.
        quality: 1..100, of JPEG and WebP; by default :data:`DEFAULT_QUALITY`. The other forms are lossless.

    Raises:
        ValueError: another shape, dtype, media type or quality.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise ValueError(f"pixels are {pixels.dtype} {list(pixels.shape)}; uint8 [H, W, 3] is expected")
    if quality is None:
        quality = DEFAULT_QUALITY
    if not 1 <= quality <= 100:
        raise ValueError(f"quality is {quality}; 1 to 100 is expected")
    pixels = np.ascontiguousarray(pixels)
    match media_type:
        case "application/octet-stream":
            return pixels.tobytes()
        case "application/x-npy":
            buffer = io.BytesIO()
            np.save(buffer, pixels, allow_pickle=False)
            return buffer.getvalue()
        case "image/jpeg":
            with _anonymous_file() as file:
                Image.fromarray(pixels).save(file, format="JPEG", quality=quality)
                file.seek(0)
                return file.read()
        case "image/png":
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
            return buffer.getvalue()
        case "image/webp":
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, format="WEBP", quality=quality, method=0)
            return buffer.getvalue()
        case _:
            raise ValueError(f"media type is {media_type!r}; one of {', '.join(OUTPUT_MEDIA_TYPES)} is expected")


def _anonymous_file() -> IO[bytes]:
    """A file in memory. Pillow's JPEG encoder lets other threads run only while it writes to a real file."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("image"), "w+b")
    return tempfile.TemporaryFile()
