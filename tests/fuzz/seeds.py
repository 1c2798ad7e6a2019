"""Real image files of every accepted format and most of what each can hold, small enough to be decoded by the thousand."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from functools import cache

import numpy as np
import skimage.data
from PIL import Image, ImageCms

__all__ = ["seeds"]

_SIZE = (48, 36)


def _save(image: Image.Image, format_name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format_name, **options)
    return buffer.getvalue()


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "A photograph"
    return exif.tobytes()


@cache
def seeds() -> Mapping[str, bytes]:
    """Name -> file. The same bytes each time, of one version of Pillow."""
    colour = Image.fromarray(skimage.data.astronaut()).resize(_SIZE)
    gray, palette = colour.convert("L"), colour.quantize(16)
    alpha = colour.convert("RGBA")
    alpha.putalpha(gray)
    deep = Image.fromarray(np.asarray(gray, np.uint16) * 257)
    frames = [colour.rotate(angle) for angle in (90, 180)]
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return {
        "jpeg": _save(colour, "JPEG"),
        "jpeg-progressive": _save(colour, "JPEG", progressive=True),
        "jpeg-gray": _save(gray, "JPEG"),
        "jpeg-cmyk": _save(colour.convert("CMYK"), "JPEG"),
        "jpeg-restarts": _save(colour, "JPEG", restart_marker_blocks=2, subsampling=0),
        "jpeg-exif-icc": _save(colour, "JPEG", exif=_exif(6), icc_profile=profile, comment=b"A comment", dpi=(72, 72)),
        **{f"png-{image.mode}": _save(image, "PNG") for image in (colour, gray, palette, alpha, deep)},
        "png-1": _save(gray.convert("1"), "PNG"),
        "png-LA": _save(alpha.convert("LA"), "PNG"),
        "png-interlaced": _interlaced_png(),
        "png-transparency": _save(palette, "PNG", transparency=bytes(range(0, 256, 16))),
        "png-metadata": _save(colour, "PNG", exif=_exif(3), icc_profile=profile),
        "apng": _save(colour, "PNG", save_all=True, append_images=frames, duration=40),
        "webp": _save(colour, "WEBP"),
        "webp-alpha": _save(alpha, "WEBP", exif=_exif(8), icc_profile=profile),
        "webp-lossless": _save(alpha, "WEBP", lossless=True),
        "webp-animated": _save(colour, "WEBP", save_all=True, append_images=frames, duration=40),
        "avif": _save(colour, "AVIF", speed=10),
        "avif-alpha": _save(alpha, "AVIF", speed=10, exif=_exif(6)),
        "gif": _save(palette, "GIF"),
        "gif-interlaced": _save(palette, "GIF", interlace=True, transparency=3),
        "gif-animated": _save(colour, "GIF", save_all=True, append_images=frames, comment=b"A comment"),
        "bmp": _save(colour, "BMP"),
        "bmp-palette": _save(palette, "BMP"),
        "bmp-1": _save(gray.convert("1"), "BMP"),
        "bmp-rle8": _run_length_bmp(),
        **{f"tiff-{image.mode}": _save(image, "TIFF") for image in (colour, palette, alpha, deep)},
        "tiff-cmyk": _save(colour.convert("CMYK"), "TIFF"),
        "tiff-1-group4": _save(gray.convert("1"), "TIFF", compression="group4"),
        "tiff-jpeg": _save(colour, "TIFF", compression="jpeg"),
        **{f"tiff-{name}": _save(colour, "TIFF", compression=f"tiff_{name}") for name in ("lzw", "deflate")},
        "tiff-packbits": _save(gray, "TIFF", compression="packbits", exif=_exif(5)),
        "tiff-pages": _save(colour, "TIFF", save_all=True, append_images=frames),
        "tiff-big": _save(colour, "TIFF", big_tiff=True),
    }


def _interlaced_png() -> bytes:
    """A PNG in seven passes (Adam7), which Pillow reads and does not write: 8 x 8, gray, unfiltered."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    passes = [(1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)]  # width x height of each, of 8 x 8 pixels
    rows = b"".join(b"\0" + bytes(range(40, 40 + width)) for width, height in passes for _ in range(height))
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _run_length_bmp() -> bytes:
    """An 8-bit run-length-encoded BMP, which Pillow reads and does not write: 8 x 4, encoded and absolute runs, a skip."""
    palette = b"".join(bytes((value, value, value, 0)) for value in range(256))
    rows = b"\x08\x40\0\0" + b"\0\x04\x10\x20\x30\x40\x04\x50\0\0" + b"\0\x02\x02\0\x06\x99\0\0" + b"\x08\xc0\0\x01"
    offset = 14 + 40 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, 8, 4, 1, 8, 1, len(rows), 2835, 2835, 256, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(rows), 0, 0, offset) + header + palette + rows
