"""Decoding of every supported format, mode and orientation."""

from __future__ import annotations

import dataclasses
import struct
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import ExifTags, Image

from service.imaging.decoding import decode_image
from service.imaging.formats import sniff
from tests.service.imaging.image_files import (
    LIMITS,
    SEEDS,
    SMALL,
    decode,
    outcome,
    photograph,
    png,
    png_chunk,
    save,
    tiff,
)

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


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea"])
@pytest.mark.parametrize("format_name", SAVED)
def test_a_photograph_survives_every_accepted_format(format_name: str, name: str) -> None:
    picture = photograph(name, 180, 120)
    options, tolerance = SAVED[format_name]

    decoded = decode(save(picture, format_name, **options))

    assert (decoded.format, decoded.original_size, decoded.image.mode) == (format_name, (180, 120), "RGB")
    difference = np.abs(np.asarray(decoded.image).astype(int) - np.asarray(picture))
    assert difference.mean() <= tolerance


@pytest.mark.parametrize("format_name", SAVED)
def test_the_first_bytes_name_the_format(format_name: str) -> None:
    assert sniff(save(SMALL, format_name)[:64]) == format_name


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "AVIF"),
        (b"\0\0\0\x1cftypavis\0\0\0\0avifmif1miaf", "AVIF"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "AVIF"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf", "HEIC"),
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf", "HEIC"),
        (b"\0\0\0\x14ftypmif1\0\0\0\0miafavif", "HEIC"),  # the brand lies outside the box
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
        ("1", "TIFF", {"compression": "group4"}),
        ("P", "GIF", {}),
        ("L", "BMP", {}),
        ("P", "BMP", {}),
    ],
)
def test_every_mode_decodes_to_the_same_picture(mode: str, format_name: str, options: dict[str, object]) -> None:
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


def test_limits_and_results_are_immutable() -> None:
    for value, field in ((LIMITS, "max_pixels"), (decode(SEEDS["png"]), "format")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, 1)
