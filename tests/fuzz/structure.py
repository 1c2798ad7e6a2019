"""Where a file's parts lie and which numbers steer its decoder: chunks, segments, blocks, boxes and entries; their lengths,
and widths, heights, depths and offsets.

The readers trust nothing: what does not fit ends the reading, and what was found until then is given.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["Number", "Part", "numbers_of", "parts_of", "with_valid_checksums"]

Order = Literal["big", "little"]


@dataclass(frozen=True)
class Part:
    """Bytes ``start`` to ``end`` that belong together; a length, if there is one, is part of them."""

    start: int
    end: int


@dataclass(frozen=True)
class Number:
    """``size`` bytes at ``start`` that a decoder reads as one number."""

    start: int
    size: int
    order: Order


def parts_of(data: bytes) -> list[Part]:
    """The parts of a file in order, none of them empty; none if it has no known form."""
    return [part for part, _ in _read(data) if part.start < part.end]


def numbers_of(data: bytes) -> list[Number]:
    """The numbers that matter in a file, those of whole parts that do not reach past its end."""
    return [number for _, numbers in _read(data) for number in numbers if number.start + number.size <= len(data)]


def with_valid_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the CRC of what is in them now, so that a decoder looks further; any other file as it is."""
    if not data.startswith(b"\x89PNG"):
        return data
    repaired = bytearray(data)
    for part in parts_of(data):
        if part.end - part.start >= 12:
            checksum = zlib.crc32(repaired[part.start + 4 : part.end - 4])
            repaired[part.end - 4 : part.end] = checksum.to_bytes(4, "big")
    return bytes(repaired)


def _read(data: bytes) -> Iterator[tuple[Part, list[Number]]]:
    if data.startswith(b"\x89PNG"):
        return _png(data)
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data.startswith(b"RIFF"):
        return _riff(data)
    if data.startswith(b"GIF"):
        return _gif(data)
    if data.startswith(b"BM"):
        return _bmp(data)
    if data.startswith((b"II", b"MM")):
        return _tiff(data)
    return _boxes(data, 0, len(data), depth=0)


def _png(data: bytes) -> Iterator[tuple[Part, list[Number]]]:
    position = 8
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        part = Part(position, min(position + 12 + length, len(data)))
        numbers = [Number(position, 4, "big")]
        kind, body = data[position + 4 : position + 8], position + 8
        if kind == b"IHDR":
            numbers += [Number(body, 4, "big"), Number(body + 4, 4, "big")]
            numbers += [Number(body + place, 1, "big") for place in range(8, 13)]
        elif kind in (b"acTL", b"fcTL"):
            numbers += [Number(place, 4, "big") for place in range(body, part.end - 4, 4)]
        yield part, numbers
        position = part.end


_JPEG_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})


def _jpeg(data: bytes) -> Iterator[tuple[Part, list[Number]]]:
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        code = data[position + 1]
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        end = min(position + 2 + length, len(data))
        numbers = [Number(position + 1, 1, "big"), Number(position + 2, 2, "big")]
        if code in _JPEG_FRAMES:
            numbers += [Number(position + 4, 1, "big"), Number(position + 5, 2, "big"), Number(position + 7, 2, "big")]
            numbers += [Number(place, 1, "big") for place in range(position + 9, end)]
        elif code in (0xC4, 0xDA, 0xDB, 0xDD):
            numbers += [Number(place, 1, "big") for place in range(position + 4, min(end, position + 24))]
        if code == 0xDA:  # what follows are the scan's own bytes, to the next marker that is none of theirs
            while end + 1 < len(data) and not (data[end] == 0xFF and data[end + 1] not in (0, *range(0xD0, 0xD8))):
                end += 1
        yield Part(position, end), numbers
        position = end


def _riff(data: bytes) -> Iterator[tuple[Part, list[Number]]]:
    yield Part(0, 12), [Number(4, 4, "little")]
    position = 12
    while position + 8 <= len(data):
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        end = min(position + 8 + length + length % 2, len(data))
        kind, body = data[position : position + 4], position + 8
        numbers = [Number(position + 4, 4, "little")]
        if kind == b"VP8X":
            numbers += [Number(body, 1, "little"), Number(body + 4, 3, "little"), Number(body + 7, 3, "little")]
        elif kind == b"VP8 ":
            numbers += [Number(body, 3, "little"), Number(body + 6, 2, "little"), Number(body + 8, 2, "little")]
        elif kind == b"VP8L":
            numbers += [Number(body + 1, 4, "little")]
        elif kind == b"ANMF":
            numbers += [Number(body + place, 3, "little") for place in range(0, 15, 3)]
        yield Part(position, end), numbers
        position = end


def _gif(data: bytes) -> Iterator[tuple[Part, list[Number]]]:
    def table(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    if len(data) < 13:
        return
    position = 13 + table(data[10])
    yield Part(0, position), [Number(6, 2, "little"), Number(8, 2, "little"), Number(10, 1, "little")]
    while position < len(data):
        start, numbers = position, []
        if data[position] == 0x2C and position + 10 < len(data):
            numbers = [Number(position + place, 2, "little") for place in (1, 3, 5, 7)]
            numbers += [Number(position + 9, 1, "little")]
            position += 10 + table(data[position + 9])
            numbers += [Number(position, 1, "little")]
            position += 1
        elif data[position] == 0x21:
            position += 2
        else:
            yield Part(position, len(data)), []
            return
        while position < len(data) and data[position]:
            numbers.append(Number(position, 1, "little"))
            position += 1 + data[position]
        position = min(position + 1, len(data))
        yield Part(start, position), numbers


def _bmp(data: bytes) -> Iterator[tuple[Part, list[Number]]]:
    yield Part(0, 14), [Number(2, 4, "little"), Number(10, 4, "little")]
    header = int.from_bytes(data[14:18], "little")
    end = min(14 + header, len(data))
    numbers = [Number(14, 4, "little"), Number(18, 4, "little"), Number(22, 4, "little")]
    numbers += [Number(26, 2, "little"), Number(28, 2, "little")]
    yield Part(14, end), [*numbers, *(Number(place, 4, "little") for place in range(30, min(end, 54), 4))]
    pixels = min(max(int.from_bytes(data[10:14], "little"), end), len(data))
    yield Part(end, pixels), []
    yield Part(pixels, len(data)), []


def _tiff(data: bytes) -> Iterator[tuple[Part, list[Number]]]:
    order: Order = "little" if data.startswith(b"II") else "big"
    big = data[2:4] in (b"+\0", b"\0+")
    count_size, entry_size, pointer_size = (8, 20, 8) if big else (2, 12, 4)
    pointer = 8 if big else 4
    yield Part(0, pointer + pointer_size), [Number(2, 2, order), Number(pointer, pointer_size, order)]
    seen: set[int] = set()
    directory = int.from_bytes(data[pointer : pointer + pointer_size], order)
    while 0 < directory < len(data) and directory not in seen:
        seen.add(directory)
        count = int.from_bytes(data[directory : directory + count_size], order)
        entries = directory + count_size
        yield Part(directory, min(entries, len(data))), [Number(directory, count_size, order)]
        for index in range(min(count, 64)):
            start = entries + index * entry_size
            if start + entry_size > len(data):
                return
            numbers = [Number(start, 2, order), Number(start + 2, 2, order)]
            numbers += [Number(start + 4, pointer_size, order), Number(start + 4 + pointer_size, pointer_size, order)]
            yield Part(start, start + entry_size), numbers
        after = entries + count * entry_size
        directory = int.from_bytes(data[after : after + pointer_size], order)


_CONTAINERS = frozenset({b"meta", b"iprp", b"ipco", b"iref", b"moov", b"trak", b"mdia", b"minf", b"stbl"})


def _boxes(data: bytes, start: int, end: int, depth: int) -> Iterator[tuple[Part, list[Number]]]:
    """Boxes of an ISO base media file, as AVIF is one."""
    while start + 8 <= end and depth < 6:
        length = int.from_bytes(data[start : start + 4], "big")
        stop = min(start + length, end) if length >= 8 else end
        kind = data[start + 4 : start + 8]
        numbers = [Number(start, 4, "big")]
        if kind in (b"ispe", b"iloc", b"pitm", b"ipma", b"pixi", b"av1C", b"iinf"):
            numbers += [Number(place, 2, "big") for place in range(start + 8, stop - 1, 2)]
        yield Part(start, stop), numbers
        if kind in _CONTAINERS:
            yield from _boxes(data, start + (12 if kind == b"meta" else 8), stop, depth + 1)
        start = stop
