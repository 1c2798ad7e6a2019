"""Decoding of large JPEG images at a reduced scale, and of images that are cut off."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import ExifTags, Image

from models.preprocess import eval_crop
from models.preprocessing_options import PUBLISHED, PreprocessingOptions
from service.imaging.decoding import accept_truncated_images, decode_image
from service.imaging.errors import ImageTooLarge, UndecodableImage
from service.imaging.limits import MediaLimits
from tests.service.imaging.image_files import LIMITS, SEEDS, SMALL, decode, photograph, save

AUTO = PreprocessingOptions(jpeg_scale="auto")
LARGE = photograph("coffee", 800, 600)


@pytest.mark.parametrize(
    ("size", "shorter"), [(18, 75), (19, 150), (37, 150), (38, 300), (75, 300), (76, 600), (200, 600)]
)
def test_a_large_jpeg_is_decoded_at_no_less_than_four_times_the_size_of_the_crop(size: int, shorter: int) -> None:
    decoded = decode_image(save(LARGE, "JPEG"), limits=LIMITS, options=AUTO, size=size)

    assert min(decoded.image.size) == shorter
    assert decoded.original_size == (800, 600)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_the_crop_of_a_reduced_jpeg_is_nearly_that_of_the_whole_one(mode: str, options: dict[str, object]) -> None:
    data = save(LARGE.convert(mode), "JPEG", quality=90, **options)

    crops = [
        eval_crop(decode_image(data, limits=LIMITS, options=choice, size=32).image, 32) for choice in (AUTO, PUBLISHED)
    ]

    assert 0 < np.abs(crops[0].astype(int) - crops[1]).mean() < 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("sides", [(683, 512), (801, 607), (1201, 3001)])
def test_the_crop_is_that_of_the_whole_image_where_the_reduced_sides_are_rounded_up(
    sides: tuple[int, int], orientation: int
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = save(photograph("coffee", *sides), "JPEG", quality=95, exif=exif)
    whole, reduced = (decode_image(data, limits=LIMITS, options=choice, size=36) for choice in (PUBLISHED, AUTO))
    assert whole.image.size == whole.original_size == reduced.original_size != reduced.image.size

    assert np.abs(whole.crop(36).astype(int) - reduced.crop(36)).mean() < 1


def test_the_published_options_and_other_formats_keep_the_whole_image() -> None:
    assert decode_image(save(LARGE, "JPEG"), limits=LIMITS, size=8).image.size == LARGE.size
    assert decode_image(save(LARGE, "PNG"), limits=LIMITS, options=AUTO, size=8).image.size == LARGE.size
    assert decode_image(save(LARGE, "JPEG"), limits=LIMITS, options=AUTO).image.size == LARGE.size


def test_the_original_size_of_a_reduced_jpeg_is_upright() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6

    decoded = decode_image(save(LARGE, "JPEG", exif=exif), limits=LIMITS, options=AUTO, size=18)

    assert (decoded.image.size, decoded.original_size) == ((75, 100), (600, 800))


def test_a_baseline_jpeg_may_have_eight_times_the_pixels_and_reserves_those_that_it_decodes() -> None:
    limits, reserved = MediaLimits(max_pixels=60_000), list[int]()
    data = save(LARGE, "JPEG")

    decode_image(data, limits=limits, options=AUTO, size=18, reserve=reserved.append)

    assert reserved[0] < 2 * len(data) + 100_000
    for refused, options in ((MediaLimits(max_pixels=59_999), AUTO), (limits, PUBLISHED)):
        with pytest.raises(ImageTooLarge, match="800 x 600 = 480000 pixels"):
            decode_image(data, limits=refused, options=options, size=18)


@pytest.mark.parametrize(("subsampling", "bytes_a_pixel"), [(0, 6), (2, 3)])
def test_a_progressive_jpeg_is_limited_by_its_coefficients(subsampling: int, bytes_a_pixel: int) -> None:
    data = save(LARGE, "JPEG", progressive=True, subsampling=subsampling)
    needed, reserved = bytes_a_pixel * 480_000, list[int]()

    decode_image(data, limits=MediaLimits(max_pixels=needed // 9), options=AUTO, size=18, reserve=reserved.append)

    assert reserved[0] > needed
    with pytest.raises(ImageTooLarge, match=f"progressive, and its coefficients need {needed} bytes"):
        decode_image(data, limits=MediaLimits(max_pixels=needed // 9 - 1), options=AUTO, size=18)


@pytest.fixture
def accepting() -> Iterator[None]:
    accept_truncated_images(True)
    yield
    accept_truncated_images(False)


@pytest.mark.usefixtures("accepting")
@pytest.mark.parametrize("seed", ["jpeg", "png", "gif", "bmp"])
def test_what_is_there_of_a_truncated_image_can_be_accepted(seed: str) -> None:
    data = SEEDS[seed][: len(SEEDS[seed]) * 9 // 10]

    rows = np.abs(np.asarray(decode(data).image).astype(int) - np.asarray(decode(SEEDS[seed]).image)).mean(axis=(1, 2))

    top, bottom = (rows[:8], rows[-2:]) if seed != "bmp" else (rows[-8:], rows[:2])
    assert top.max() < 1 < bottom.max()


def test_a_truncated_image_is_refused_by_default() -> None:
    with pytest.raises(UndecodableImage, match="truncated"):
        decode(save(SMALL, "JPEG")[:-200])
