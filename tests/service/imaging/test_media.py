"""Images of strangers: what is taken, what is refused and how, and what is sent back."""

from __future__ import annotations

import base64
import dataclasses
import io
import random
import struct
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import skimage.data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from service.http.problems import ContentTooLarge, Problem, UndecodableImage, UnsupportedMediaType
from service.imaging.media import (
    ACCEPTED_FORMATS,
    OUTPUT_EXTENSIONS,
    OUTPUT_MEDIA_TYPES,
    DecodedImage,
    MediaLimits,
    decode_image,
    encode_image,
    sniff,
)

LIMITS = MediaLimits(max_pixels=4_000_000)

# format -> (what to save it with, the largest mean difference of a channel after a round trip)
SAVED: Mapping[str, tuple[dict[str, object], float]] = {
    "JPEG": ({"quality": 95}, 3.0),
    "PNG": ({}, 0.0),
    "WEBP": ({"lossless": True}, 0.0),
    "AVIF": ({"quality": 95, "speed": 10}, 3.0),
    "GIF": ({}, 12.0),
    "BMP": ({}, 0.0),
    "TIFF": ({}, 0.0),
}


def save(image: Image.Image, format_name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format_name, **options)
    return buffer.getvalue()


def decode(data: bytes, limits: MediaLimits = LIMITS) -> DecodedImage:
    return decode_image(data, limits=limits)


def outcome(data: bytes, limits: MediaLimits = LIMITS) -> DecodedImage | Problem:
    """What a request would end as; any other exception fails the test."""
    try:
        return decode(data, limits)
    except Problem as problem:
        refusal = problem
    assert refusal.status < 500
    return refusal


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


# --- what is taken ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea"])
@pytest.mark.parametrize("format_name", ACCEPTED_FORMATS)
def test_a_photograph_survives_every_accepted_format(format_name: str, name: str) -> None:
    picture = photograph(name, 180, 120)
    options, tolerance = SAVED[format_name]

    decoded = decode(save(picture, format_name, **options))

    assert (decoded.format, decoded.original_size, decoded.image.mode) == (format_name, (180, 120), "RGB")
    difference = np.abs(np.asarray(decoded.image).astype(int) - np.asarray(picture))
    assert difference.mean() <= tolerance


@pytest.mark.parametrize("format_name", ACCEPTED_FORMATS)
def test_the_first_bytes_name_the_format(format_name: str) -> None:
    assert sniff(save(SMALL, format_name)[:64]) == format_name


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "AVIF"),
        (b"\0\0\0\x1cftypavis\0\0\0\0avifmif1miaf", "AVIF"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "AVIF"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf", None),
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf", None),
        (b"\0\0\0\x14ftypmif1\0\0\0\0miafavif", None),  # the brand lies outside the box
        (b"II+\0\x08\0\0\0", "TIFF"),
        (b"RIFF\0\0\0\0WAVE", None),
        (b"BMW is a maker of cars and motorcycles", None),
        (b"", None),
    ],
)
def test_brands_and_short_signatures_are_read_with_care(data: bytes, expected: str | None) -> None:
    assert sniff(data) == expected


@pytest.mark.parametrize(
    ("mode", "format_name", "options"),
    [
        ("1", "PNG", {}),
        ("L", "PNG", {}),
        ("LA", "PNG", {}),
        ("P", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("RGBA", "TIFF", {}),
        ("L", "JPEG", {"quality": 95}),
        ("CMYK", "JPEG", {"quality": 95}),
        ("CMYK", "TIFF", {}),
        ("YCbCr", "TIFF", {"compression": "jpeg", "quality": 95}),
        ("LAB", "TIFF", {}),
        ("1", "TIFF", {"compression": "group4"}),
        ("P", "GIF", {}),
        ("L", "BMP", {}),
        ("P", "BMP", {}),
    ],
)
def test_every_mode_comes_out_as_the_picture_it_was(mode: str, format_name: str, options: dict[str, object]) -> None:
    source = photograph("coffee", 60, 40).convert(mode)

    decoded = decode(save(source, format_name, **options))

    expected = np.asarray(source.convert("RGB")).astype(int)
    assert np.abs(np.asarray(decoded.image) - expected).mean() < 3


def test_sixteen_bit_gray_keeps_its_high_byte() -> None:
    values = np.array([[0, 255, 256, 0x7FFF, 0xABCD, 0xFFFF]], dtype=np.uint16)
    for format_name in ("PNG", "TIFF"):
        decoded = decode(save(Image.fromarray(values), format_name))

        assert np.asarray(decoded.image)[0, :, 0].tolist() == [0, 0, 1, 0x7F, 0xAB, 0xFF], format_name


def test_transparency_is_laid_over_white() -> None:
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    for format_name, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("AVIF", {}), ("GIF", {})):
        assert decode(save(clear, format_name, **options)).image.getpixel((1, 1)) == (255, 255, 255), format_name


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_picture_and_its_size(orientation: int, format_name: str) -> None:
    upright = Image.new("RGB", (48, 32), "blue")
    upright.paste("red", (0, 0, 24, 16))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> the transposition that stores it
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation

    decoded = decode(save(stored, format_name, exif=exif))

    assert decoded.original_size == decoded.image.size == (48, 32)
    quarters = [decoded.image.getpixel(at) for at in ((12, 8), (36, 8), (12, 24), (36, 24))]
    is_red = [isinstance(pixel, tuple) and pixel[0] > 128 for pixel in quarters]
    assert is_red == [True, False, False, False]


@pytest.mark.parametrize("format_name", ["GIF", "WEBP", "AVIF", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(format_name: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]

    decoded = decode(save(frames[0], format_name, save_all=True, append_images=frames[1:]))

    red, green, blue = np.asarray(decoded.image).reshape(-1, 3).mean(axis=0)
    assert red > 240
    assert max(green, blue) < 15


def test_the_bytes_decide_when_another_image_type_was_declared() -> None:
    decoded = decode_image(SEEDS["png"], limits=LIMITS, declared="image/jpeg")

    assert decoded.format == "PNG"


def test_a_bmp_stored_top_down_is_read_top_down() -> None:
    bottom_up = save(SMALL, "BMP")
    height, offset, row = 28, 54, 40 * 3
    rows = [bottom_up[offset + row * y : offset + row * (y + 1)] for y in range(height)]
    top_down = bottom_up[:22] + struct.pack("<i", -height) + bottom_up[26:offset] + b"".join(rows[::-1])

    np.testing.assert_array_equal(np.asarray(decode(top_down).image), np.asarray(SMALL))


def test_corrupt_exif_does_not_spoil_a_good_picture(recwarn: pytest.WarningsRecorder) -> None:
    wrong = b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\xff\xff\0\0\xff\xff\x82\x98\0\x02\0\0\0\x50\0\0\xff\xf0"
    for format_name in ("JPEG", "PNG", "WEBP"):
        assert decode(save(SMALL, format_name, exif=wrong)).original_size == SMALL.size

    assert not recwarn


def test_pillow_writes_nothing_of_a_strangers_file_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        outcome(tiff({256: 4, 257: 4, 277: 5000}))

    assert not caplog.records


def test_warnings_of_pillow_are_not_raised_even_where_warnings_are_errors() -> None:
    # An animation chunk without frames makes Pillow warn.
    animation = png_chunk(b"acTL", struct.pack(">II", 0, 0))
    data = png(1, 1, depth=8, colour=0, rows=b"\0\x07", extra=animation)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(data).image.getpixel((0, 0)) == (7, 7, 7)


def test_images_are_decoded_side_by_side() -> None:
    def pictures() -> list[bytes]:
        return [decode(data).image.tobytes() for data in SEEDS.values()]

    expected = pictures()
    with ThreadPoolExecutor(8) as threads:
        results = [threads.submit(pictures) for _ in range(8)]

    assert all(result.result() == expected for result in results)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
        (b"\xef\xbb\xbf  <html>", "an HTML page"),
        (b"%PDF-1.7\n%\xe2\xe3", "a PDF document"),
        (b"PK\x03\x04\x14\0", "a ZIP archive"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b'{"image": "..."}', "JSON"),
        (b"<?xml version='1.0'?><feed/>", "XML"),
        (b"--boundary\r\nContent-Disposition: form-data", "a multipart form"),
        (b"hello, world", "text"),
        (base64.b64encode(SEEDS["jpeg"]), "base64"),
        (base64.b64encode(SEEDS["png"]), "base64"),
        (base64.b64encode(SEEDS["webp"]), "base64"),
        (b"data:image/png;base64,iVBORw0KGgo=", "base64"),
        (b"\x93NUMPY\x01\0", "a NumPy array"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "a video"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "RIFF"),
        (b"\xde\xad\xbe\xef\0\x01\x02\x03\x04", "de ad be ef 00 01 02 03"),
        (b"\x89PN", "89 50 4e"),
    ],
)
def test_what_is_no_image_is_refused_with_what_it_looks_like(data: bytes, words: str) -> None:
    with pytest.raises(UndecodableImage, match=words) as refusal:
        decode_image(data, limits=LIMITS, pointer="body/2")

    assert refusal.value.status == 400
    assert [error.pointer for error in refusal.value.errors] == ["body/2"]
    assert "image/jpeg" in refusal.value.detail


def test_a_declared_type_is_named_when_the_bytes_are_no_image() -> None:
    with pytest.raises(UndecodableImage, match="declared as image/png"):
        decode_image(b"hello, world", limits=LIMITS, declared="image/png")


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<?xml version='1.0'?>\n<!-- drawn by hand -->\n<svg/>", "SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"8BPS\0\x01", "PSD"),
        (b"\0\0\x01\0\x01\0", "ICO"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"P6\n2 2\n255\n", "Netpbm"),
        (b"qoif\0\0\0\x01", "QOI"),
    ],
)
def test_an_image_of_a_format_that_is_not_taken_is_refused_with_those_that_are(data: bytes, name: str) -> None:
    with pytest.raises(UnsupportedMediaType, match=name) as refusal:
        decode_image(data, limits=LIMITS, pointer="body/1")

    assert refusal.value.errors[0].pointer == "body/1"
    for media_type in ACCEPTED_FORMATS.values():
        assert media_type in refusal.value.detail


@pytest.mark.parametrize("seed", SEEDS)
def test_a_truncated_image_is_refused_unless_nothing_is_lost(seed: str) -> None:
    whole = SEEDS[seed]
    expected = decode(whole).image.tobytes()
    refused = 0
    for length in {*range(0, len(whole), max(1, len(whole) // 60)), *range(len(whole) - 24, len(whole))}:
        result = outcome(whole[:length])
        if isinstance(result, DecodedImage):
            assert result.image.tobytes() == expected, f"{length} of {len(whole)} bytes gave another picture"
        else:
            assert isinstance(result, UndecodableImage)
            refused += 1
    assert refused >= 20


def test_a_file_is_never_handed_to_the_decoder_of_another_format() -> None:
    # Begins like AVIF, and is a whole 2 x 2 Targa file, a format that Pillow tries on anything.
    targa = b"\0\0\x02\0ftypavif" + struct.pack("<HHBB", 2, 2, 24, 0) + bytes(12)
    with Image.open(io.BytesIO(targa), formats=["TGA"]) as image:
        image.load()

    assert sniff(targa) == "AVIF"
    assert isinstance(outcome(targa), UndecodableImage)


def test_floating_point_pixels_are_refused_by_name() -> None:
    with pytest.raises(UndecodableImage, match="'F'"):
        decode(save(Image.new("F", (4, 4)), "TIFF"))


def test_a_refusal_never_shows_an_address_in_memory() -> None:
    for data in SEEDS.values():
        assert "0x" not in str(outcome(data[:40]))


# --- what is too large -----------------------------------------------------------------------------------------------


def test_the_pixel_limit_is_inclusive_and_its_problem_says_value_and_limit() -> None:
    data = save(Image.new("RGB", (50, 40)), "PNG")

    assert decode(data, MediaLimits(max_pixels=2000)).original_size == (50, 40)
    with pytest.raises(ContentTooLarge, match=r"50 x 40 = 2000 pixels; at most 1999") as refusal:
        decode_image(data, limits=MediaLimits(max_pixels=1999), pointer="body/3")
    (error,) = refusal.value.errors
    assert (error.pointer, error.value, error.expected) == ("body/3", 2000, "<= 1999")


@pytest.mark.parametrize("format_name", ACCEPTED_FORMATS)
def test_every_format_obeys_the_pixel_limit(format_name: str) -> None:
    with pytest.raises(ContentTooLarge):
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


def tiff(tags: dict[int, int]) -> bytes:
    """An 8-bit gray TIFF file of one directory."""
    entries = {258: 8, 259: 8, 262: 1, 277: 1} | tags
    if 322 not in entries:
        entries |= {273: 8, 278: entries[257], 279: 8}
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + rows + bytes(4)


@pytest.mark.parametrize(("name", "data"), [pytest.param(*bomb, id=bomb[0]) for bomb in bombs()])
def test_a_bomb_is_refused_from_its_header(name: str, data: bytes) -> None:
    started = time.perf_counter()

    with pytest.raises(ContentTooLarge):
        decode(data, MediaLimits())

    assert time.perf_counter() - started < 1


def test_a_jpeg_of_a_thousand_scans_is_refused() -> None:
    progressive = save(Image.new("RGB", (64, 64), "gray"), "JPEG", progressive=True)
    assert decode(progressive).format == "JPEG"
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]

    with pytest.raises(UndecodableImage, match="64 scans"):
        decode(progressive[:-2] + 1000 * scan + progressive[-2:])


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
    with pytest.raises(ContentTooLarge, match="run-length-encoded"):
        decode(run_length(300, 20), MediaLimits(max_run_length_pixels=5999))


def test_compressed_text_and_profiles_in_a_png_do_not_unfold_without_bound() -> None:
    bomb = zlib.compress(bytes(64_000_000))
    for extra in (png_chunk(b"zTXt", b"Comment\0\0" + bomb), png_chunk(b"iCCP", b"ICC\0\0" + bomb)):
        assert isinstance(outcome(png(1, 1, depth=8, colour=0, rows=b"\0\0", extra=extra)), UndecodableImage)


def test_a_directory_whose_tags_overlap_is_not_read_over_and_over() -> None:
    payload = bytes(500_000)
    tags = b"".join(struct.pack("<HHII", 40_000 + tag, 7, len(payload), 8) for tag in range(5000))
    directory = struct.pack("<H", 5000) + tags + bytes(4)
    hostile = b"II*\0" + struct.pack("<I", 8 + len(payload)) + payload + directory
    webp = save(SMALL, "WEBP", exif=b"Exif\0\0" + hostile)
    started = time.perf_counter()

    assert isinstance(outcome(hostile), UndecodableImage)
    assert isinstance(outcome(webp), DecodedImage)

    assert time.perf_counter() - started < 2


# --- hostile bytes ---------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), seed=st.sampled_from(sorted(SEEDS)))
def test_no_edit_of_an_image_causes_anything_but_a_picture_or_a_problem(data: st.DataObject, seed: str) -> None:
    original = SEEDS[seed]
    start = data.draw(st.integers(0, len(original)))
    removed = data.draw(st.integers(0, 16))
    inserted = data.draw(st.binary(max_size=16))

    outcome(original[:start] + inserted + original[start + removed :])


@settings(max_examples=100, deadline=None)
@given(prefix=st.sampled_from([data[:length] for data in SEEDS.values() for length in (4, 16, 40)]), tail=st.binary())
def test_no_bytes_after_a_signature_cause_anything_but_a_picture_or_a_problem(prefix: bytes, tail: bytes) -> None:
    outcome(prefix + tail)


@pytest.mark.parametrize("seed", SEEDS)
def test_flipped_bytes_cause_nothing_but_a_picture_or_a_problem(seed: str) -> None:
    chance = random.Random(seed)
    original, limits = SEEDS[seed], MediaLimits(max_pixels=250_000)
    for _ in range(300):
        mutated = bytearray(original)
        # Mostly in the header, where bytes mean sizes, offsets and counts.
        reach = chance.choice([64, 256, len(original)])
        for _ in range(chance.choice([1, 1, 2, 4, 8])):
            mutated[chance.randrange(min(reach, len(mutated)))] = chance.choice(
                [0, 1, 127, 128, 255, chance.randrange(256)]
            )

        result = outcome(bytes(mutated), limits)

        if isinstance(result, DecodedImage):
            assert result.image.mode == "RGB"
            assert result.image.size == result.original_size
            assert result.image.width * result.image.height <= limits.max_pixels


@pytest.mark.parametrize(
    "failure",
    [
        SyntaxError, struct.error, ValueError, OSError, EOFError, IndexError, TypeError, KeyError, ZeroDivisionError,
        MemoryError, OverflowError, RuntimeError, RecursionError, Image.DecompressionBombError, NotImplementedError,
        zlib.error, AttributeError, UnicodeDecodeError, UserWarning,
    ],
)  # fmt: skip
def test_whatever_pillow_raises_is_an_undecodable_image(
    monkeypatch: pytest.MonkeyPatch, failure: type[Exception]
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise UnicodeDecodeError("utf-8", b"", 0, 1, "no") if failure is UnicodeDecodeError else failure("broken")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(UndecodableImage):
        decode(SEEDS["png"])


# --- what is sent back -----------------------------------------------------------------------------------------------

PIXELS = np.asarray(photograph("astronaut", 256, 256))


@pytest.mark.parametrize("media_type", OUTPUT_MEDIA_TYPES)
def test_the_same_pixels_give_the_same_bytes(media_type: str) -> None:
    assert encode_image(PIXELS, media_type) == encode_image(PIXELS.copy(order="F"), media_type)


@pytest.mark.parametrize(("media_type", "extension"), OUTPUT_EXTENSIONS.items())
def test_pictures_are_sent_in_the_format_of_their_media_type(media_type: str, extension: str) -> None:
    decoded = decode(encode_image(PIXELS, media_type))

    assert ACCEPTED_FORMATS[decoded.format] == media_type
    assert {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[extension] == decoded.format
    assert np.abs(np.asarray(decoded.image).astype(int) - PIXELS).mean() < 4


def test_png_raw_rows_and_npy_are_lossless() -> None:
    np.testing.assert_array_equal(np.asarray(decode(encode_image(PIXELS, "image/png")).image), PIXELS)
    raw = encode_image(PIXELS, "application/octet-stream")
    np.testing.assert_array_equal(np.frombuffer(raw, np.uint8).reshape(256, 256, 3), PIXELS)
    npy = np.load(io.BytesIO(encode_image(PIXELS, "application/x-npy")), allow_pickle=False)
    assert npy.dtype == np.uint8
    np.testing.assert_array_equal(npy, PIXELS)


@pytest.mark.parametrize("media_type", ["image/jpeg", "image/webp"])
def test_quality_sets_the_size_of_lossy_pictures_and_is_90_by_default(media_type: str) -> None:
    low, default, high = (len(encode_image(PIXELS, media_type, quality=quality)) for quality in (10, None, 100))

    assert low < default < high
    assert encode_image(PIXELS, media_type) == encode_image(PIXELS, media_type, quality=90)


def test_quality_changes_nothing_of_lossless_forms() -> None:
    for media_type in ("image/png", "application/octet-stream", "application/x-npy"):
        assert encode_image(PIXELS, media_type, quality=1) == encode_image(PIXELS, media_type)


def test_jpeg_is_encoded_into_a_file_descriptor_where_pillow_lets_other_threads_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_image, descriptors = Image.Image.save, []

    def watched(image: Image.Image, file: io.BufferedIOBase, **options: object) -> None:
        descriptors.append(file.fileno())
        save_image(image, file, **options)

    monkeypatch.setattr(Image.Image, "save", watched)
    encode_image(PIXELS, "image/jpeg")

    assert len(descriptors) == 1


@pytest.mark.parametrize("media_type", ["image/png", "image/webp"])
def test_other_threads_run_while_a_picture_is_encoded(media_type: str) -> None:
    pixels = np.asarray(photograph("astronaut", 512, 512))
    encode_image(pixels, media_type)
    turns, stop, interval = 0, threading.Event(), sys.getswitchinterval()

    def count() -> None:
        nonlocal turns
        while not stop.is_set():
            turns += 1
            time.sleep(0)

    # With so long an interval a thread runs only where the encoder lets go of the interpreter of its own accord.
    sys.setswitchinterval(60)
    try:
        counter = threading.Thread(target=count)
        counter.start()
        before = turns
        encode_image(pixels, media_type)
        during = turns - before
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        counter.join()

    assert during > 20


@pytest.mark.parametrize(
    ("pixels", "media_type", "quality", "words"),
    [
        (PIXELS.astype(np.float32), "image/png", None, "float32"),
        (PIXELS[..., 0], "image/png", None, r"\[256, 256\]"),
        (PIXELS[:0], "image/png", None, r"\[0, 256, 3\]"),
        (PIXELS, "image/gif", None, "image/gif"),
        (PIXELS, "image/jpeg", 0, "quality is 0"),
        (PIXELS, "image/jpeg", 101, "quality is 101"),
    ],
)
def test_what_cannot_be_encoded_is_a_value_error(
    pixels: np.ndarray, media_type: str, quality: int | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        encode_image(pixels, media_type, quality=quality)


def test_limits_and_results_are_immutable() -> None:
    for value, field in ((LIMITS, "max_pixels"), (decode(SEEDS["png"]), "format")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, 1)
