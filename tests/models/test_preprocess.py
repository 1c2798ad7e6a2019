"""Parity of the crops with the published ones, and conversion of all image modes to RGB."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import ExifTags, Image

from models import preprocess
from models.arrays import Pixels
from models.preprocess import adm_crop, eval_crop, ten_crop, to_rgb

GOLDEN = Path(__file__).parents[1] / "golden" / "cases" / "preprocess.npz"


@pytest.fixture(scope="module")
def golden() -> Mapping[str, Pixels]:
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    return Image.fromarray(skimage.data.chelsea()).resize((48, 32))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


# --- the published crops ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "stride"), [(0, 1), (1, 2), (2, 2), (3, 1)])
def test_eval_crop_equals_the_published_evaluation_pixel_for_pixel(
    golden: Mapping[str, Pixels], case: int, stride: int
) -> None:
    crop = eval_crop(Image.fromarray(golden[f"input{case}"]), 256)

    assert crop.shape == (256, 256, 3)
    assert crop.dtype == np.uint8
    np.testing.assert_array_equal(crop[::stride, ::stride], golden[f"eval{case}"])


@pytest.mark.parametrize(("case", "stride"), [(0, 1), (1, 2)])
def test_adm_crop_equals_the_published_one_pixel_for_pixel(
    golden: Mapping[str, Pixels], case: int, stride: int
) -> None:
    crop = adm_crop(Image.fromarray(golden[f"input{case}"]), 256)

    np.testing.assert_array_equal(crop[::stride, ::stride], golden[f"adm{case}"])


@pytest.mark.parametrize("case", [2, 3])
def test_both_crops_agree_on_images_smaller_than_the_crop(golden: Mapping[str, Pixels], case: int) -> None:
    image = Image.fromarray(golden[f"input{case}"])

    np.testing.assert_array_equal(adm_crop(image, 256), eval_crop(image, 256))


@pytest.mark.parametrize("case", [0, 1])
def test_ten_crop_equals_the_published_crops_in_order(golden: Mapping[str, Pixels], case: int) -> None:
    views = ten_crop(Image.fromarray(golden[f"input{case}"]))

    assert views.shape == (10, 256, 256, 3)
    assert views.dtype == np.uint8
    np.testing.assert_array_equal(views[:, ::32, ::32], golden[f"tencrop{case}"])


def test_the_last_five_crops_are_of_the_mirrored_image() -> None:
    image = noise(300, 280)
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)

    # An even margin, so that the mirrored square is the square of the mirrored image.
    views, of_mirrored = ten_crop(image, 64, pad_factor=1.25), ten_crop(mirrored, 64, pad_factor=1.25)

    np.testing.assert_array_equal(views[5:], of_mirrored[:5])


@pytest.mark.parametrize(("width", "height"), [(1900, 700), (700, 1900), (300, 4000), (4000, 300), (50, 6000)])
def test_resizing_is_a_horizontal_pass_followed_by_a_vertical_one(width: int, height: int) -> None:
    # As every Pillow before 13 did. Resizing in one call fails here: since then tall images go the other way round.
    image, size, bicubic = noise(width, height), 64, Image.Resampling.BICUBIC
    resized = (int(size * width / min(width, height)), int(size * height / min(width, height)))
    left, top = (round((side - size) / 2) for side in resized)

    expected = image.resize((resized[0], height), bicubic).resize(resized, bicubic)

    expected = expected.crop((left, top, left + size, top + size))
    np.testing.assert_array_equal(eval_crop(image, size), np.asarray(expected))


def test_pixels_are_the_same_with_every_release_of_pillow() -> None:
    digest = hashlib.sha256()
    for width, height in [(300, 200), (200, 300), (300, 4000), (4000, 300), (60, 3000), (512, 512), (40, 90)]:
        image = noise(width, height)
        for crop in (eval_crop, adm_crop, ten_crop):
            digest.update(crop(image, 64).tobytes())

    # Computed with Pillow 11.3 and 13.0. If this fails, raise PREPROCESSING_VERSION or mend the pixels.
    assert digest.hexdigest() == "9efc9f23f16d0ef31d7d04566e109215264af1a6fdcb0efec073b3d3e3a8437d"


@pytest.mark.parametrize(("side", "offset"), [(256, 0), (257, 0), (259, 2), (261, 2), (281, 12)])
def test_the_centre_offset_rounds_half_to_even(side: int, offset: int) -> None:
    # 257 -> 0.5 -> 0, 259 -> 1.5 -> 2, 261 -> 2.5 -> 2, 281 -> 12.5 -> 12
    image = noise(side, 256)

    np.testing.assert_array_equal(eval_crop(image, 256), np.asarray(image)[:, offset : offset + 256])


@pytest.mark.parametrize("crop", [eval_crop, adm_crop])
def test_an_image_of_the_right_size_is_unchanged(crop: Callable[[Image.Image, int], Pixels]) -> None:
    image = noise(64, 64)

    np.testing.assert_array_equal(crop(image, 64), np.asarray(image))


@pytest.mark.parametrize("crop", [eval_crop, adm_crop])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 2), (2000, 3), (3, 2000), (777, 1234)])
def test_images_of_any_size_are_cropped_to_a_square(
    crop: Callable[[Image.Image, int], Pixels], size: tuple[int, int]
) -> None:
    pixels = crop(Image.new("RGB", size, (10, 200, 30)), 256)

    assert pixels.shape == (256, 256, 3)
    assert (pixels == (10, 200, 30)).all()


def test_elongated_images_have_the_same_pixels_as_with_the_ordinary_method(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chance = random.Random(0)
    for case in range(40):
        short = chance.choice([1, 2, 3, 7, 16, 33, 64, 100, 257])
        long = chance.randint(short, min(60 * short, 4000))
        size, width, height = chance.choice([16, 64, 100]), *chance.sample([short, long], 2)
        image = noise(width, height, seed=case)
        ordinary = eval_crop(image, size), adm_crop(image, size)
        with monkeypatch.context() as patch:
            patch.setattr(preprocess, "_MAX_RESIZED_PIXELS", 0)
            elongated = eval_crop(image, size), adm_crop(image, size)

        for left, right in zip(ordinary, elongated, strict=True):
            np.testing.assert_array_equal(left, right, err_msg=f"{width} x {height} -> {size}")


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (3, 1_000_000), (1_000_000, 3), (4000, 60)])
def test_an_extreme_aspect_ratio_creates_no_large_resized_image(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    resize, largest = Image.Image.resize, 0

    def watched(image: Image.Image, to: tuple[int, int], *args: object) -> Image.Image:
        nonlocal largest
        largest = max(largest, to[0] * to[1])
        return resize(image, to, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "resize", watched)
    image = Image.new("RGB", size, (1, 2, 3))

    assert (eval_crop(image, 256) == (1, 2, 3)).all()
    assert (adm_crop(image, 256) == (1, 2, 3)).all()
    assert 0 < largest <= 1 << 21


@pytest.mark.parametrize("crop", [eval_crop, adm_crop, ten_crop])
def test_crops_reject_other_modes_and_sizes_below_one(crop: Callable[[Image.Image, int], Pixels]) -> None:
    with pytest.raises(ValueError, match="'L'"):
        crop(Image.new("L", (8, 8)), 8)
    with pytest.raises(ValueError, match="size is 0"):
        crop(Image.new("RGB", (8, 8)), 0)


def test_ten_crop_rejects_a_pad_factor_below_one() -> None:
    with pytest.raises(ValueError, match="pad_factor"):
        ten_crop(Image.new("RGB", (8, 8)), 8, pad_factor=0.5)


# --- any image -> RGB ------------------------------------------------------------------------------------------------


def test_an_opaque_upright_rgb_image_is_returned_unchanged(photograph: Image.Image) -> None:
    assert to_rgb(photograph) is photograph


@pytest.mark.parametrize(
    ("mode", "tolerance"),
    [("RGBA", 0), ("RGBX", 0), ("RGBa", 0), ("CMYK", 0), ("YCbCr", 4), ("LAB", 8), ("HSV", 8)],
)
def test_colour_modes_keep_their_colours(photograph: Image.Image, mode: str, tolerance: int) -> None:
    source = photograph.convert("RGBA") if mode == "RGBa" else photograph
    rgb = to_rgb(source.convert(mode))

    assert rgb.mode == "RGB"
    assert np.abs(np.asarray(rgb).astype(int) - np.asarray(photograph)).max() <= tolerance


@pytest.mark.parametrize("mode", ["L", "LA", "La"])
def test_gray_becomes_three_equal_channels(photograph: Image.Image, mode: str) -> None:
    gray = photograph.convert("L")
    source = gray if mode == "L" else gray.convert("LA").convert(mode)

    np.testing.assert_array_equal(np.asarray(to_rgb(source)), np.dstack([np.asarray(gray)] * 3))


def test_one_bit_images_become_black_and_white() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)

    assert np.asarray(to_rgb(image)).tolist() == [[[0, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("mode", ["P", "PA"])
def test_palettes_are_converted(photograph: Image.Image, mode: str) -> None:
    palette = photograph.quantize(64)
    source = palette if mode == "P" else palette.convert("PA")

    np.testing.assert_array_equal(np.asarray(to_rgb(source)), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I"])
def test_sixteen_bit_gray_keeps_its_high_byte(mode: str) -> None:
    values = [0, 0x00FF, 0x0100, 0x7FFF, 0xABCD, 0xFFFF]
    image = Image.new(mode, (len(values), 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)

    assert np.asarray(to_rgb(image))[0, :, 1].tolist() == [0x00, 0x00, 0x01, 0x7F, 0xAB, 0xFF]


@pytest.mark.parametrize("value", [-1, 65536, 2**31 - 1])
def test_integers_beyond_sixteen_bits_are_rejected(value: int) -> None:
    with pytest.raises(ValueError, match=str(value)):
        to_rgb(Image.new("I", (2, 2), value))


def test_floating_point_pixels_are_rejected_by_name() -> None:
    with pytest.raises(ValueError, match="'F'"):
        to_rgb(Image.new("F", (2, 2)))


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (0, 100, 200, 51), (204, 224, 244)),
        ("RGBa", (0, 20, 40, 51), (204, 224, 244)),
        ("LA", (0, 51), (204, 204, 204)),
        ("La", (0, 51), (204, 204, 204)),
    ],
)
def test_transparency_becomes_white(mode: str, colour: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert to_rgb(Image.new(mode, (3, 2), colour)).getpixel((1, 1)) == expected


@pytest.mark.parametrize(
    ("mode", "colour", "transparency", "expected"),
    [
        ("P", 1, 1, (255, 255, 255)),
        ("P", 1, 0, (10, 20, 30)),
        ("P", 1, b"\xff\x00", (255, 255, 255)),
        ("P", 0, b"\xff\x00", (0, 0, 0)),
        ("L", 7, 7, (255, 255, 255)),
        ("L", 7, 8, (7, 7, 7)),
        ("1", 0, 0, (255, 255, 255)),
        ("I;16", 700, 700, (255, 255, 255)),
        ("I;16", 701, 700, (2, 2, 2)),
        ("RGB", (1, 2, 3), (1, 2, 3), (255, 255, 255)),
        ("RGB", (1, 2, 3), (1, 2, 4), (1, 2, 3)),
        ("RGB", (1, 2, 3), (257, 514, 771), (1, 2, 3)),
    ],
)
def test_a_transparent_colour_or_palette_entry_becomes_white(
    mode: str, colour: int | tuple[int, ...], transparency: object, expected: tuple[int, ...]
) -> None:
    image = Image.new(mode, (2, 2), colour)
    if mode == "P":
        image.putpalette([0, 0, 0, 10, 20, 30])
    image.info["transparency"] = transparency

    assert to_rgb(image).getpixel((0, 0)) == expected


def test_a_palette_with_alpha_is_composed_over_white() -> None:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 255, 0, 100, 200, 51], "RGBA")

    assert to_rgb(image).getpixel((0, 0)) == (204, 224, 244)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, mode: str) -> None:
    upright = np.asarray(noise(5, 3).convert(mode))
    # What a camera stores, by the position of the stored picture's first row and column in the upright one.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: upright.swapaxes(0, 1)[::-1],
        7: upright.swapaxes(0, 1)[::-1, ::-1],
        8: upright.swapaxes(0, 1)[:, ::-1],
    }[orientation]
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.info["exif"] = exif.tobytes()

    rgb = to_rgb(image)

    np.testing.assert_array_equal(np.asarray(rgb), np.asarray(to_rgb(Image.fromarray(upright))))
    np.testing.assert_array_equal(np.asarray(to_rgb(rgb)), np.asarray(rgb))


@pytest.mark.parametrize("orientation", [0, 9, 65535, "upside down", b"\x06", (6, 6)])
def test_an_invalid_orientation_is_ignored(photograph: Image.Image, orientation: object) -> None:
    image = photograph.copy()
    image.getexif()[ExifTags.Base.Orientation] = orientation

    assert to_rgb(image) is image


def test_unreadable_exif_is_ignored(photograph: Image.Image) -> None:
    image = photograph.copy()
    image.info["exif"] = b"Exif\0\0not a TIFF header"

    assert to_rgb(image) is image
