"""Pixels encoded as image files."""

from __future__ import annotations

import io
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from service.imaging.encoding import OUTPUT_EXTENSIONS, OUTPUT_MEDIA_TYPES, encode_image
from service.imaging.formats import ACCEPTED_FORMATS
from tests.service.imaging.image_files import decode, photograph

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
