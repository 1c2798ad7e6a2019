"""PNG files: faulty and odd chunks, transparent colors, animations."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from tests.service.imaging.image_files import SEEDS, SMALL, decode, png, png_chunk

RGB = np.asarray(SMALL)


@pytest.mark.parametrize("place", ["before", "between", "after"])
@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"iCCP", b"no terminator"),
        png_chunk(b"iCCP", b"icc\0\x07" + zlib.compress(b"profile")),  # an unknown compression method
        png_chunk(b"zTXt", b"Comment\0\x01" + zlib.compress(b"text")),
        png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3_000_000))),
        png_chunk(b"cLLI", b"\0"),
        png_chunk(b"cICP", b"\x01"),
        png_chunk(b"gAMA", b"\0"),
        png_chunk(b"tRNS", b"\0"),
        png_chunk(b"pHYs", b"\0"),
        png_chunk(b"acTL", b"\0"),
        png_chunk(b"acTL", bytes(8)) + png_chunk(b"fdAT", b"\0\0\0\0pixels"),
        png_chunk(b"fcTL", bytes(26)) + png_chunk(b"fcTL", b"\0\0\0\x07" + bytes(22)),
        png_chunk(b"tEXt", b"Title\0\0")[:-1] + b"\0",  # a wrong checksum
    ],
)
def test_no_ancillary_chunk_decides_whether_a_png_opens(chunk: bytes, place: str) -> None:
    data = SEEDS["png"]
    pixels = data.index(b"IDAT") - 4
    length = int.from_bytes(data[pixels : pixels + 4])
    compressed = data[pixels + 8 : pixels + 8 + length]
    parts = [png_chunk(b"IDAT", compressed[:500]), png_chunk(b"IDAT", compressed[500:])]
    parts.insert({"before": 0, "between": 1, "after": 2}[place], chunk)

    decoded = decode(data[:pixels] + b"".join(parts) + data[-12:])

    np.testing.assert_array_equal(np.asarray(decoded.image), RGB)


def test_a_png_opens_without_a_whole_end() -> None:
    for cut in range(1, 13):
        np.testing.assert_array_equal(np.asarray(decode(SEEDS["png"][:-cut]).image), RGB)


def test_a_transparent_color_counts_before_the_pixels_only() -> None:
    pixel, key = b"\0\x07", png_chunk(b"tRNS", b"\0\x07")
    plain = png(1, 1, depth=8, colour=0, rows=pixel)

    assert decode(png(1, 1, depth=8, colour=0, rows=pixel, extra=key)).image.getpixel((0, 0)) == (255, 255, 255)
    assert decode(plain[:-12] + key + plain[-12:]).image.getpixel((0, 0)) == (7, 7, 7)


def animation(frame: bytes, screen: bytes = b"", *, corner: tuple[int, int] = (0, 0), sequence: int = 0) -> bytes:
    """A PNG animation of one ``frame`` that leaves its default image ``screen`` out, both PNG files of one color type."""
    screen = screen or frame
    compressed = frame[frame.index(b"IDAT") + 4 : -16]
    control = struct.pack(">I", sequence) + frame[16:24] + struct.pack(">IIHHH", *corner, 1, 10, 0)
    chunks = png_chunk(b"fcTL", control) + png_chunk(b"fdAT", struct.pack(">I", sequence + 1) + compressed)
    return screen[:33] + png_chunk(b"acTL", b"\0\0\0\1" + bytes(4)) + screen[33:-12] + chunks + screen[-12:]


def test_a_png_animation_without_its_default_image_shows_its_first_frame_on_white() -> None:
    small = png(2, 1, depth=8, colour=2, rows=b"\0" + bytes(6))
    expected = np.full((28, 40, 3), 255)
    np.testing.assert_array_equal(np.asarray(decode(animation(small, SEEDS["png"], sequence=1)).image), expected)
    np.testing.assert_array_equal(np.asarray(decode(animation(small, SEEDS["png"], corner=(39, 3))).image), expected)
    expected[3, 5:7] = 0

    np.testing.assert_array_equal(np.asarray(decode(animation(small, SEEDS["png"], corner=(5, 3))).image), expected)


@pytest.mark.parametrize(("depth", "row", "key", "shown"), [
    (2, b"\x70", 1, (255, 255, 0, 0)),  # samples 1, 3, 0, 0
    (2, b"\x70", 0x101, (255, 255, 0, 0)),
    (4, b"\x70\x80", 7, (255, 0, 136, 0)),
    (1, b"\x40", 1, (0, 255, 0, 0)),
    (8, b"\7\x70\0\0", 0x107, (255, 112, 0, 0)),
], ids=["2 bits", "2 of 16 bits", "4 bits", "1 bit", "8 of 16 bits"])  # fmt: skip
def test_the_low_bits_of_a_transparent_gray_count(depth: int, row: bytes, key: int, shown: tuple[int, ...]) -> None:
    data = png(4, 1, depth=depth, colour=0, rows=b"\0" + row, extra=png_chunk(b"tRNS", struct.pack(">H", key)))

    assert tuple(np.asarray(decode(data).image)[0, :, 0]) == shown


def test_all_16_bits_of_a_transparent_color_count() -> None:
    pixels, key = [(0x101, 0x202, 0x303), (0x101, 0x202, 0x304), (0x201, 0x202, 0x303)], (0x101, 0x202, 0x303)
    rows = b"\0" + b"".join(struct.pack(">3H", *pixel) for pixel in pixels)

    still = png(3, 1, depth=16, colour=2, rows=rows, extra=png_chunk(b"tRNS", struct.pack(">3H", *key)))

    for data in (still, animation(still)):
        assert np.asarray(decode(data).image).tolist() == [[[255, 255, 255], [1, 2, 3], [2, 2, 3]]]


def test_transparency_before_its_palette_and_of_too_many_entries_is_ignored() -> None:
    palette, key = png_chunk(b"PLTE", b"\1\2\3"), png_chunk(b"tRNS", b"\0")
    for chunks, shown in ((palette + key, 255), (key + palette, 1), (palette + png_chunk(b"tRNS", bytes(2)), 1)):
        data = png(1, 1, depth=8, colour=3, rows=bytes(2), extra=chunks)
        assert np.asarray(decode(data).image)[0, 0, 0] == shown
