"""Limits on pixels, scans and compressed metadata."""

from __future__ import annotations

import struct
import time
import tracemalloc
import zlib
from collections.abc import Iterator

import pytest
from PIL import Image

from service.imaging.decoding import DecodedImage, decode_image
from service.imaging.errors import ImageTooLarge, UndecodableImage
from service.imaging.formats import ACCEPTED_FORMATS
from service.imaging.limits import MediaLimits
from tests.service.imaging.image_files import SEEDS, SMALL, decode, outcome, png, png_chunk, save, tiff


def test_the_pixel_limit_is_inclusive_and_its_problem_says_value_and_limit() -> None:
    data = save(Image.new("RGB", (50, 40)), "PNG")

    assert decode(data, MediaLimits(max_pixels=2000)).original_size == (50, 40)
    with pytest.raises(ImageTooLarge, match=r"50 x 40 = 2000 pixels; the limit is 1999") as refusal:
        decode_image(data, limits=MediaLimits(max_pixels=1999), pointer="body/3")
    (error,) = refusal.value.errors
    assert (error.pointer, error.value, error.expected) == ("body/3", 2000, "<= 1999")


@pytest.mark.parametrize("format_name", sorted(ACCEPTED_FORMATS.keys() - {"HEIC"}))
def test_every_format_obeys_the_pixel_limit(format_name: str) -> None:
    with pytest.raises(ImageTooLarge):
        decode(save(SMALL, format_name), MediaLimits(max_pixels=SMALL.width * SMALL.height - 1))


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files that announce far more than they hold."""
    for depth, colour in ((1, 0), (8, 2), (16, 6)):
        yield f"png-{depth}-{colour}", png(60_000, 60_000, depth=depth, colour=colour, rows=bytes(1_000_000))
    jpeg = SEEDS["jpeg"]
    frame = jpeg.index(b"\xff\xc0") + 5
    yield "jpeg", jpeg[:frame] + struct.pack(">HH", 65_500, 65_500) + jpeg[frame + 4 :]
    yield "gif", b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + SEEDS["gif"][10:]
    gif = SEEDS["gif"]
    left = gif.index(b",\0\0\0\0") + 1  # a frame far outside its canvas
    yield "gif-frame", gif[:left] + struct.pack("<HHHH", 65_000, 65_000, 500, 500) + gif[left + 8 :]
    yield "bmp", SEEDS["bmp"][:18] + struct.pack("<ii", 60_000, 60_000) + SEEDS["bmp"][26:]
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\x00" * 2
    yield "webp-vp8x", b"RIFF" + struct.pack("<I", 22) + b"WEBP" + extended
    webp = bytearray(SEEDS["webp"])
    webp[26:30] = struct.pack("<HH", 16_383, 16_383)
    yield "webp-vp8", bytes(webp)
    webp = bytearray(SEEDS["webp-lossless-alpha"])
    webp[21:25] = struct.pack("<I", 16_382 | 16_382 << 14)
    yield "webp-vp8l", bytes(webp)
    avif = SEEDS["avif"]
    extents = avif.index(b"ispe") + 8
    yield "avif", avif[:extents] + struct.pack(">II", 16_000, 16_000) + avif[extents + 8 :]
    yield "tiff", tiff({256: 60_000, 257: 60_000})
    yield "tiff-tile", tiff({256: 8, 257: 8, 322: 50_000, 323: 50_000, 324: 8, 325: 8})


@pytest.mark.parametrize(("name", "data"), [pytest.param(*bomb, id=bomb[0]) for bomb in bombs()])
def test_a_bomb_is_refused_from_its_header(name: str, data: bytes) -> None:
    started = time.perf_counter()

    with pytest.raises(ImageTooLarge):
        decode(data, MediaLimits())

    assert time.perf_counter() - started < 1


def test_a_jpeg_of_a_thousand_scans_is_refused() -> None:
    progressive = save(Image.new("RGB", (64, 64), "gray"), "JPEG", progressive=True)
    assert decode(progressive).format == "JPEG"
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]

    with pytest.raises(UndecodableImage, match="64 scans"):
        decode(progressive[:-2] + 1000 * scan + progressive[-2:])


def test_a_large_jpeg_may_have_fewer_scans_than_a_small_one() -> None:
    progressive = save(Image.new("RGB", (64, 64), "gray"), "JPEG", progressive=True, subsampling=0)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    data = progressive[:-2] + 30 * scan + progressive[-2:]

    assert decode(data, MediaLimits(max_pixels=20 * 64 * 64)).format == "JPEG"
    with pytest.raises(UndecodableImage, match="64 x 64 pixels has more than 18 scans"):
        decode(data, MediaLimits(max_pixels=64 * 64))


def test_scans_of_what_follows_the_image_do_not_count() -> None:
    assert decode(SEEDS["jpeg"] + b"\xff\xda\0\x02" * 100_000).original_size == SMALL.size


def test_run_length_encoding_has_a_limit_of_its_own() -> None:
    def run_length(width: int, height: int) -> bytes:
        header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 2, 2)
        palette = b"\0\0\0\0\xff\xff\xff\0"
        runs = (b"\xff\x01" * (width // 255) + bytes([width % 255, 1]) + b"\0\0") * height + b"\0\x01"
        body = header + palette + runs
        return b"BM" + struct.pack("<IHHI", 14 + len(body), 0, 0, 14 + 48) + body

    assert decode(run_length(300, 20)).image.getpixel((299, 0)) == (255, 255, 255)
    with pytest.raises(ImageTooLarge, match="run-length-encoded"):
        decode(run_length(300, 20), MediaLimits(max_run_length_pixels=5999))


def test_compressed_text_and_profiles_in_a_png_do_not_unfold_without_bound() -> None:
    bomb = zlib.compress(bytes(64_000_000))
    for extra in (png_chunk(b"zTXt", b"Comment\0\0" + bomb), png_chunk(b"iCCP", b"ICC\0\0" + bomb)):
        tracemalloc.start()
        assert isinstance(outcome(png(1, 1, depth=8, colour=0, rows=b"\0\0", extra=extra)), DecodedImage)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
        tracemalloc.stop()


def test_a_tiff_directory_with_overlapping_tags_is_read_once() -> None:
    payload = bytes(500_000)
    tags = b"".join(struct.pack("<HHII", 40_000 + tag, 7, len(payload), 8) for tag in range(5000))
    directory = struct.pack("<H", 5000) + tags + bytes(4)
    hostile = b"II*\0" + struct.pack("<I", 8 + len(payload)) + payload + directory
    webp = save(SMALL, "WEBP", exif=b"Exif\0\0" + hostile)
    started = time.perf_counter()

    assert isinstance(outcome(hostile), UndecodableImage)
    assert isinstance(outcome(webp), DecodedImage)

    assert time.perf_counter() - started < 2
