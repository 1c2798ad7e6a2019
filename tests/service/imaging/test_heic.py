"""HEIC, which is decoded if the package pi-heif is installed."""

from __future__ import annotations

import base64
import struct

import pytest

from models.preprocessing_options import PreprocessingOptions
from service.imaging import decoding
from service.imaging.decoding import decode_image
from service.imaging.errors import ImageTooLarge, UndecodableImage, UnsupportedImageFormat
from service.imaging.formats import ACCEPTED_FORMATS, sniff
from service.imaging.limits import MediaLimits
from tests.service.imaging.image_files import LIMITS, SEEDS, decode

pytest.importorskip("pi_heif")

# 48 x 32 pixels, blue, upper left quarter red; turned by 270 degrees (irot), with orientation 6 in EXIF as well. The decoder
# has no encoder, so that the test cannot make one.
PHOTOGRAPH = base64.b64decode(
    "AAAAHGZ0eXBoZWl4AAAAAG1pZjFoZWl4bWlhZgAAAcltZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "ADRpbG9jAAAAAERAAAIAAQAAAAAB7QABAAAAAAAAAE8AAgAAAAACPAABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAA"
    "AAABAABodmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABCGlwcnAAAADnaXBjbwAAAHdodmNDAQQIAAAA"
    "njgAAAAAHvAA/P/4+AAADwNgAAEAF0ABDAH//wQIAAADAJ44AAADAAAeugJAYQABACpCAQEECAAAAwCeOAAAAwAAHpAEECCy3VyU"
    "1zcBDQYEAAADAGQAAAMABCBiAAEACEQBwXMYMAiQAAAAE2NvbHJuY2x4AAEADQAGgAAAABRpc3BlAAAAAAAAAEAAAABAAAAAKGNs"
    "YXAAAAAwAAAAAQAAACAAAAAB////8AAAAAL////gAAAAAgAAABBwaXhpAAAAAAMICAgAAAAJaXJvdAMAAAAZaXBtYQAAAAAAAAAB"
    "AAEGgQIDBYSGAAAAGmlyZWYAAAAAAAAADmNkc2MAAgABAAEAAAB7bWRhdAAAAEsoAa8J4OOEmvVf/7B3//6bvkPng+Mbvn/zZTd9"
    "Qbf/jypDYOdsy+qv4dUAmI0gO/+nqH8wfE04LYhv/tNEB9q69/0tpr6rjRQJTnAAAAAGRXhpZgAATU0AKgAAAAgAAQESAAMAAAAB"
    "AAYAAAAAAAA="
)


def quarters(data: bytes) -> list[bool]:
    """Whether the quarters of the upright image are red."""
    image = decode(data).image
    points = [(image.width * x // 4, image.height * y // 4) for y in (1, 3) for x in (1, 3)]
    return [isinstance(pixel := image.getpixel(point), tuple) and pixel[0] > 128 for point in points]


def test_a_photograph_is_turned_once() -> None:
    assert decode(PHOTOGRAPH).original_size == (32, 48)
    assert quarters(PHOTOGRAPH) == [False, True, False, False]

    as_stored = PHOTOGRAPH.replace(b"irot\x03", b"irot\0")

    assert decode(as_stored).original_size == (48, 32)
    assert quarters(as_stored) == [True, False, False, False]


def test_it_obeys_the_limit_on_pixels_and_is_called_truncated() -> None:
    with pytest.raises(ImageTooLarge):
        decode(PHOTOGRAPH, MediaLimits(max_pixels=48 * 32 - 1))
    for length in (60, 300, len(PHOTOGRAPH) - 20):
        with pytest.raises(UndecodableImage, match="truncated"):
            decode(PHOTOGRAPH[:length])


def test_a_large_header_is_refused_before_its_pixels_are_decoded() -> None:
    extents = PHOTOGRAPH.index(b"ispe") + 8

    with pytest.raises((ImageTooLarge, UndecodableImage)):
        decode(PHOTOGRAPH[:extents] + struct.pack(">II", 30_000, 30_000) + PHOTOGRAPH[extents + 8 :], MediaLimits())


def test_high_dynamic_range_is_refused_by_name() -> None:
    box = PHOTOGRAPH.index(b"colrnclx") + 8
    hdr = PHOTOGRAPH[:box] + struct.pack(">HH", 9, 18) + PHOTOGRAPH[box + 4 :]

    with pytest.raises(UnsupportedImageFormat, match="HLG"):
        decode_image(hdr, limits=LIMITS, options=PreprocessingOptions(color="srgb"))


@pytest.mark.parametrize("data", [PHOTOGRAPH, SEEDS["gif"], SEEDS["avif"]])
def test_a_format_that_is_left_out_is_refused_with_those_that_are_accepted(data: bytes) -> None:
    format_name = sniff(data)
    assert format_name in decoding._CLASSES
    with pytest.raises(UnsupportedImageFormat, match=f"{format_name} images are not supported") as refusal:
        decode(data, MediaLimits(formats=frozenset(ACCEPTED_FORMATS) - {format_name}))

    assert ACCEPTED_FORMATS[format_name] not in str(refusal.value)
    assert "image/jpeg" in str(refusal.value)
