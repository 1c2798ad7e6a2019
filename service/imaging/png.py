"""PNG files without the chunks that hold no pixels, and what Pillow does not read of the others.

Pillow refuses a whole file for one faulty ancillary chunk; browsers ignore the chunk. Here only chunks that determine
pixels, transparency and orientation are passed on, so that no other chunk can fail. Chunks follow
https://www.w3.org/TR/png-3/.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from models.preprocess import to_rgb

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOR_CHUNKS = frozenset({b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM"})
_BEFORE_PIXELS = _COLOR_CHUNKS | {b"eXIf", b"tRNS", b"acTL", b"fcTL"}
_GRAY, _RGB, _PALETTE = 0, 2, 3


@dataclass(frozen=True)
class PngFile:
    """``pixels``: the file without other chunks. ``color``: the first of each valid chunk that describes colors.

    ``frame``: the first frame of an animation as a file, and its (left, top), if the default image is not part of the
    animation; ``pixels`` is without the default image then. The file is empty if the frame is damaged: it is transparent.
    """

    pixels: bytes
    color: Mapping[bytes, bytes]
    frame: tuple[bytes, tuple[int, int]] | None


def split_png(data: bytes) -> PngFile:
    """Separates the chunks of pixels from those of colors, and drops all others.

    IDAT chunks are joined also where another chunk interrupts them. A chunk that is cut off is kept as far as it goes.
    """
    view = memoryview(data)
    critical, pixels, palette, first_pixels = bytearray(), bytearray(), 0, 0
    before, seen, is_whole = dict[bytes, bytes](), set[bytes](), True
    for name, start, end in _chunks(data):
        if name == b"IEND":
            break
        is_whole = end <= len(data)
        if name == b"IDAT":
            first_pixels = first_pixels or start
            pixels += view[start:end]
        elif not name[0] & 0x20:  # Pillow checks it
            critical += view[start:end]
            if name == b"PLTE":
                palette = (end - start) // 3 - 4
                before.pop(b"tRNS", None)  # of a palette that follows
        elif not pixels and name in _BEFORE_PIXELS and name not in seen:
            seen.add(name)
            if _is_sound(view, start, end):
                before[name] = data[start + 8 : end - 4]
    if key := _transparent(data[24:26], before.get(b"tRNS", b""), palette):
        critical += _chunk(b"tRNS", key)
    end_chunk = _chunk(b"IEND", b"") if is_whole else b""
    exif = _chunk(b"eXIf", before[b"eXIf"]) if b"eXIf" in before else b""
    frame = _first_frame(view, first_pixels, critical, end_chunk) if _has_hidden_image(before) else None
    return PngFile(
        b"".join((SIGNATURE, critical, exif, pixels if frame is None else _chunk(b"IDAT", b""), end_chunk)),
        {name: before[name] for name in _COLOR_CHUNKS & before.keys()},
        frame,
    )


def _has_hidden_image(before: Mapping[bytes, bytes]) -> bool:
    """Whether the file is an animation, and its default image is not a part of it."""
    control = before.get(b"acTL", b"")
    return len(control) == 8 and 0 < int.from_bytes(control[:4]) < 1 << 31 and b"fcTL" not in before


def _first_frame(
    view: memoryview, position: int, critical: bytearray, end_chunk: bytes
) -> tuple[bytes, tuple[int, int]]:
    """The frame of the first fcTL from ``position`` on and of the fdAT chunks that follow it, in the right sequence."""
    control, pixels, sequence = memoryview(b""), bytearray(), 0
    for name, start, end in _chunks(view, position):
        if name == b"fcTL" and not control and _is_sound(view, start, end):
            control = view[start + 8 : end - 4]
        elif name == b"fdAT" and control and view[start + 8 : start + 12] == struct.pack(">I", sequence + 1):
            sequence += 1
            pixels += view[start + 12 : end - 4]
        elif name in {b"fcTL", b"fdAT", b"IEND"}:
            break
    if len(control) != 26 or control[:4] != bytes(4) or not pixels:
        return b"", (0, 0)
    width, height, left, top = struct.unpack_from(">4I", control, 4)
    screen = struct.unpack_from(">II", critical, 8)
    if left + width > screen[0] or top + height > screen[1] or 0 in (width, height):
        return b"", (0, 0)
    header = _chunk(b"IHDR", b"".join((control[4:12], critical[16:21])))
    return b"".join((SIGNATURE, header, critical[25:], _chunk(b"IDAT", pixels), end_chunk)), (left, top)


def load_png(image: PngImageFile, png: PngFile) -> Image.Image:
    """The picture that browsers show of an opened file: RGB on white if it is the frame of an animation."""
    if png.frame is None:
        return _with_exact_key(image, png.pixels)
    data, corner = png.frame
    frame = to_rgb(_with_exact_key(PngImageFile(io.BytesIO(data), ""), data)) if data else None
    screen = Image.new("RGB", image.size, "white")
    if frame is not None:
        screen.paste(frame, corner)
    screen.info = {"exif": image.info["exif"]} if "exif" in image.info else {}
    return screen


def _with_exact_key(image: PngImageFile, data: bytes) -> Image.Image:
    """RGBA for 16-bit RGB with a transparent color: Pillow keeps the high bytes, and colors can differ in the low ones."""
    key = image.info.get("transparency")
    if not image.tile or image.tile[0].args != "RGB;16B" or not isinstance(key, tuple):
        return image
    low = PngImageFile(io.BytesIO(data), "")
    low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
    is_key = _has_color(low, [part & 0xFF for part in key])
    del low
    is_key &= _has_color(image, [part >> 8 for part in key])
    image.info.pop("transparency")
    image.putalpha(Image.fromarray((~is_key).astype(np.uint8) * 255))
    return image


def _has_color(image: Image.Image, color: Sequence[int]) -> NDArray[np.bool_]:
    """Which pixels of an RGB image have a color; shape (height, width)."""
    is_same = np.full(image.size[::-1], True)
    for index, part in enumerate(color):
        is_same &= np.asarray(image.getchannel(index)) == part
    return is_same


def _chunk(name: bytes, payload: bytes | bytearray) -> bytes:
    checksum = zlib.crc32(payload, zlib.crc32(name))
    return b"".join((struct.pack(">I", len(payload)), name, payload, struct.pack(">I", checksum)))


def _chunks(data: bytes | memoryview, position: int = len(SIGNATURE)) -> Iterator[tuple[bytes, int, int]]:
    """The name of each chunk, where it starts and ends; the last one may be cut off."""
    while len(name := bytes(data[position + 4 : position + 8])) == 4 and name.isalnum():
        end = position + 12 + int.from_bytes(data[position : position + 4])
        yield name, position, end
        position = end


def _is_sound(view: memoryview, start: int, end: int) -> bool:
    return end <= len(view) and zlib.crc32(view[start + 4 : end - 4]) == int.from_bytes(view[end - 4 : end])


def _transparent(header: bytes, payload: bytes, palette: int) -> bytes:
    """The payload of tRNS as Pillow reads it; empty if its length does not fit, so that it is ignored, as by libpng.

    Bits beyond the depth do not count, and gray of few bits is scaled like the pixels.
    """
    depth, color_type = header
    if color_type == _PALETTE:
        return payload if len(payload) <= palette else b""
    if len(payload) != {_GRAY: 2, _RGB: 6}.get(color_type):
        return b""
    most = (1 << depth) - 1
    scale = 255 // most if 1 < depth < 8 else 1
    return b"".join(
        ((int.from_bytes(payload[at : at + 2]) & most) * scale).to_bytes(2) for at in range(0, len(payload), 2)
    )
