"""Images that are refused, and damaged files."""

from __future__ import annotations

import base64
import io
import random
import struct
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from service.imaging import decoding
from service.imaging.decoding import DecodedImage, decode_image
from service.imaging.errors import UndecodableImage, UnsupportedImageFormat
from service.imaging.formats import ACCEPTED_FORMATS, sniff
from service.imaging.limits import MediaLimits
from tests.service.imaging.image_files import LIMITS, SEEDS, decode, outcome


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

    assert [error.pointer for error in refusal.value.errors] == ["body/2"]
    assert "image/jpeg" in str(refusal.value)


def test_a_declared_type_is_named_when_the_bytes_are_no_image() -> None:
    with pytest.raises(UndecodableImage, match="declared as image/png"):
        decode_image(b"hello, world", limits=LIMITS, declared="image/png")


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<?xml version='1.0'?>\n<!-- drawn by hand -->\n<svg/>", "SVG"),
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
    with pytest.raises(UnsupportedImageFormat, match=name) as refusal:
        decode_image(data, limits=LIMITS, pointer="body/1")

    assert refusal.value.errors[0].pointer == "body/1"
    for media_type in ACCEPTED_FORMATS.values():
        assert media_type in str(refusal.value)


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
            assert isinstance(result, UndecodableImage), str(result)
            refused += 1
    assert refused >= 20


def test_a_file_is_never_handed_to_the_decoder_of_another_format() -> None:
    # Begins like AVIF, and is a whole 2 x 2 Targa file, a format that Pillow tries on anything.
    targa = b"\0\0\x02\0ftypavif" + struct.pack("<HHBB", 2, 2, 24, 0) + bytes(12)
    with Image.open(io.BytesIO(targa), formats=["TGA"]) as image:
        image.load()

    assert sniff(targa) == "AVIF"
    assert isinstance(outcome(targa), UndecodableImage)


def test_a_refusal_never_shows_an_address_in_memory() -> None:
    for data in SEEDS.values():
        assert "0x" not in str(outcome(data[:40]))


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

    monkeypatch.setitem(decoding._CLASSES, "PNG", fail)
    with pytest.raises(UndecodableImage):
        decode(SEEDS["png"])
