"""Image files that the tests make, and how they are decoded."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping

import numpy as np
import skimage.data
from PIL import Image

from service.imaging.decoding import DecodedImage, decode_image
from service.imaging.errors import ImageError
from service.imaging.limits import MediaLimits

LIMITS = MediaLimits(max_pixels=4_000_000)


def save(image: Image.Image, format_name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format_name, **options)
    return buffer.getvalue()


def decode(data: bytes, limits: MediaLimits = LIMITS) -> DecodedImage:
    return decode_image(data, limits=limits)


def outcome(data: bytes, limits: MediaLimits = LIMITS) -> DecodedImage | ImageError:
    """The image or the error; any other exception fails the test."""
    try:
        return decode(data, limits)
    except ImageError as error:
        return error


def photograph(name: str, width: int, height: int) -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)()).resize((width, height))


SMALL = photograph("astronaut", 40, 28)

SEEDS: Mapping[str, bytes] = {
    "jpeg": save(SMALL, "JPEG"),
    "jpeg-progressive-cmyk": save(SMALL.convert("CMYK"), "JPEG", progressive=True),
    "jpeg-exif": save(SMALL, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
    "png": save(SMALL, "PNG"),
    "png-palette": save(SMALL.quantize(16), "PNG", transparency=3),
    "webp": save(SMALL, "WEBP"),
    "webp-lossless-alpha": save(SMALL.convert("RGBA"), "WEBP", lossless=True),
    "avif": save(SMALL, "AVIF", speed=10),
    "gif": save(SMALL, "GIF"),
    "gif-animated": save(SMALL, "GIF", save_all=True, append_images=[SMALL.rotate(90)]),
    "bmp": save(SMALL, "BMP"),
    "bmp-palette": save(SMALL.quantize(16), "BMP"),
    "tiff": save(SMALL, "TIFF"),
    "tiff-deflate": save(SMALL, "TIFF", compression="tiff_deflate"),
    "tiff-lzw-16bit": save(Image.fromarray(np.arange(1120, dtype=np.uint16).reshape(28, 40) * 58), "TIFF"),
}


def png_chunk(name: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload))


def png(width: int, height: int, *, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + extra + body


def tiff(tags: dict[int, int]) -> bytes:
    """An 8-bit gray TIFF file of one directory."""
    entries = {258: 8, 259: 8, 262: 1, 277: 1} | tags
    if 322 not in entries:
        entries |= {273: 8, 278: entries[257], 279: 8}
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + rows + bytes(4)
