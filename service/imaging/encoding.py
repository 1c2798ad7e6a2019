"""Pixels to image files.

::

    uint8 [H, W, 3] ── encode_image ──> bytes of image/jpeg, image/png, image/webp, raw rows or .npy
"""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import IO, Any

import numpy as np
from PIL import Image

from models.arrays import Pixels
from models.codes.latents import to_npy

OUTPUT_EXTENSIONS: Mapping[str, str] = MappingProxyType(
    {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp"},
)
"""Media type -> file extension of the pictures :func:`encode_image` makes."""

OUTPUT_MEDIA_TYPES: tuple[str, ...] = (*OUTPUT_EXTENSIONS, "application/octet-stream", "application/x-npy")
"""Everything :func:`encode_image` makes: pictures, raw uint8 RGB rows, and a ``.npy`` file."""

DEFAULT_QUALITY = 90
"""Of JPEG and WebP."""


def encode_image(pixels: Pixels, media_type: str, *, quality: int | None = None) -> bytes:
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
            return to_npy(pixels)
        case "image/jpeg":
            return _save(pixels, format="JPEG", quality=quality)
        case "image/png":
            return _png(pixels)
        case "image/webp":
            return _save(pixels, format="WEBP", quality=quality, method=0)
        case _:
            raise ValueError(f"media type is {media_type!r}; one of {', '.join(OUTPUT_MEDIA_TYPES)} is expected")


def _png(pixels: Pixels) -> bytes:
    """A PNG file, in a third of Pillow's time, and no larger for photographs: each row minus the one above (filter 2), and
    runs and Huffman codes, without a search for repetitions. Source: PNG specification, sections 5, 9 and 10.
    """
    height, width, _ = pixels.shape
    rows = pixels.reshape(height, 3 * width)
    filtered = np.full((height, 1 + 3 * width), 2, np.uint8)
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    compressor = zlib.compressobj(1, strategy=zlib.Z_RLE)
    data = compressor.compress(filtered.data) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB, not interlaced
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(name)))
        for name, content in chunks
    )


def _save(pixels: Pixels, **options: Any) -> bytes:
    with _anonymous_file() as file:
        Image.fromarray(pixels).save(file, **options)
        file.seek(0)
        return file.read()


def _anonymous_file() -> IO[bytes]:
    """A file in memory. Pillow's JPEG encoder lets other threads run only while it writes to a real file."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("image"), "w+b")
    return tempfile.TemporaryFile()
