"""PNG files without the chunks that hold no pixels.

Pillow refuses a whole file for one faulty ancillary chunk; browsers ignore the chunk. Here only chunks that determine
pixels, transparency and orientation are passed on, so that no other chunk can fail. Chunks follow
https://www.w3.org/TR/png-3/.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\0\0\0\0IEND\xaeB`\x82"
_COLOR_CHUNKS = frozenset({b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM"})
_TRANSPARENT_COLOR_BYTES = {0: 2, 2: 6}
"""Color type -> length of tRNS. A palette has up to 256 entries."""


@dataclass(frozen=True)
class PngFile:
    """``pixels``: the file without other chunks. ``color``: the first of each valid chunk that describes colors."""

    pixels: bytes
    color: dict[bytes, bytes]


def split_png(data: bytes) -> PngFile:
    """Separates the chunks of pixels from those of colors, and drops all others.

    IDAT chunks are joined also where another chunk interrupts them. A chunk that is cut off is kept as far as it goes.
    """
    view = memoryview(data)
    kept, color, has_pixels, palette = [view[:8]], dict[bytes, bytes](), False, 0
    seen = set[bytes]()
    is_whole = True
    for name, start, end in _chunks(data):
        if name == b"IEND":
            break
        is_whole = end <= len(data)
        if name == b"IDAT":
            kept.append(view[start:end])
            has_pixels = True
            continue
        is_first = name not in seen
        seen.add(name)
        if not name[0] & 0x20:  # critical: Pillow checks it
            kept.append(view[start:end])
            palette = (end - start - 12) // 3 if name == b"PLTE" else palette
        elif is_first and _is_sound(data, start, end):
            payload = data[start + 8 : end - 4]
            if name == b"eXIf" or (name == b"tRNS" and not has_pixels and _fits(data[25], len(payload), palette)):
                kept.append(view[start:end])
            elif name in _COLOR_CHUNKS and not has_pixels:
                color[name] = payload
    return PngFile(b"".join((*kept, _END if is_whole else b"")), color)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The name of each chunk, where it starts and ends; the last one may be cut off."""
    position = len(SIGNATURE)
    while len(name := data[position + 4 : position + 8]) == 4 and name.isalpha():
        end = position + 12 + int.from_bytes(data[position : position + 4])
        yield name, position, end
        position = end


def _is_sound(data: bytes, start: int, end: int) -> bool:
    return end <= len(data) and zlib.crc32(memoryview(data)[start + 4 : end - 4]) == int.from_bytes(data[end - 4 : end])


def _fits(color_type: int, length: int, palette: int) -> bool:
    """Whether tRNS has the length that its color type asks for; other lengths are ignored, as by libpng."""
    if color_type == 3:
        return 0 < length <= palette
    return length == _TRANSPARENT_COLOR_BYTES.get(color_type, -1)
