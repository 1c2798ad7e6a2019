import io

import numpy as np
import pytest
from PIL import ExifTags, Image

from models.data.decoding import decode_image
from models.preprocess import crop_at, eval_crop


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def saved(image: Image.Image, **options: object) -> bytes:
    image.save(buffer := io.BytesIO(), "png", **options)
    return buffer.getvalue()


def test_an_image_of_the_right_size_is_unchanged() -> None:
    image = noise(16, 16)
    assert np.array_equal(decode_image(saved(image), 16), np.asarray(image))
    assert np.array_equal(decode_image(saved(image), 16, (0.99, 0.0)), np.asarray(image))


@pytest.mark.parametrize(("width", "height"), [(40, 24), (24, 40), (7, 9), (400, 5)])
def test_other_sizes_are_cropped_as_in_the_evaluation(width: int, height: int) -> None:
    image = noise(width, height)
    assert np.array_equal(decode_image(saved(image), 16), eval_crop(image, 16))


def test_a_position_selects_the_crop() -> None:
    image = noise(64, 16)
    for position, left in (((0.0, 0.0), 0), ((0.5, 0.5), 24), ((0.9999, 0.9999), 48)):
        expected = np.asarray(image)[:, left : left + 16]
        assert np.array_equal(decode_image(saved(image), 16, position), expected)
    with pytest.raises(ValueError, match="from 0 to below 1"):
        crop_at(image, 16, (1.0, 0.0))


def test_orientation_is_applied_and_transparency_becomes_white() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image = noise(16, 16)
    assert np.array_equal(decode_image(saved(image, exif=exif), 16), np.rot90(np.asarray(image), -1))
    clear = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    assert (decode_image(saved(clear), 16) == 255).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "cannot identify"), (b"GIF89a", "."), (saved(noise(16, 16))[:200], "truncated")],
    ids=["nothing", "a header alone", "half an image"],
)
def test_damaged_bytes_raise_value_error(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode_image(data, 16)


def test_formats_that_can_execute_code_are_rejected() -> None:
    with pytest.raises(ValueError, match="cannot identify"):
        decode_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n", 16)
