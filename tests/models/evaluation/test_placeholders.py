"""Every baseline keeps to its bytes, and looks like the image: a broken one would flatter the tokenizer."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from models.evaluation.placeholders import (
    PCA_SIZE,
    BlurHash,
    Codec,
    Grid,
    SmallWebP,
    ThumbHash,
    WebP,
    fit_principal_components,
    placeholders,
)


def psnr(images: np.ndarray, others: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(images.astype(float) - others).mean((1, 2, 3))).mean())


@pytest.fixture(scope="module")
def pictures(photographs: list[Image.Image]) -> np.ndarray:
    """Four photographs, uint8 [4, 128, 128, 3]."""
    return np.stack([np.asarray(photograph.resize((128, 128))) for photograph in photographs])


@pytest.mark.parametrize(
    ("codec", "num_bytes", "decibels"),
    [(Grid(48), 48, 1.5), (ThumbHash(), 24, 1.5), (BlurHash(48), 44, 1.5), (Grid(192), 192, 3.0)],
    ids=["4x4", "thumbhash", "blurhash", "8x8"],
)
def test_placeholders_keep_to_their_bytes_and_beat_one_colour(
    codec: Codec, num_bytes: int, decibels: float, pictures: np.ndarray
) -> None:
    images, sizes = codec(pictures)
    assert (images.shape, images.dtype) == (pictures.shape, np.uint8)
    assert sizes.tolist() == [num_bytes] * len(pictures)
    one_colour = np.broadcast_to(pictures.mean((1, 2), keepdims=True), pictures.shape)
    assert psnr(images, pictures) > psnr(one_colour, pictures) + decibels


@pytest.mark.parametrize(("max_bytes", "components"), [(48, (5, 4)), (24, (3, 3)), (6, (1, 1)), (500, (9, 9))])
def test_a_blurhash_has_as_many_components_as_fit(
    max_bytes: int, components: tuple[int, int], pictures: np.ndarray
) -> None:
    codec = BlurHash(max_bytes)
    assert codec.components == components
    assert codec(pictures[:1]).num_bytes.max() <= max_bytes


def test_of_both_ways_to_lay_a_blurhash_the_closer_one_counts() -> None:
    waves = np.cos(np.arange(128) / 128 * 4 * np.pi) * 100 + 128  # five components see them, four do not
    upright = np.broadcast_to(waves[None, :, None], (128, 128, 3)).astype(np.uint8)
    images = np.stack([upright, upright.swapaxes(0, 1)])
    first, second = BlurHash(48)(images).images
    np.testing.assert_allclose(first, second.swapaxes(0, 1), atol=1)
    assert psnr(first[None], images[:1]) > 20


def test_small_webps_fit_and_no_smaller_one_is_closer(pictures: np.ndarray) -> None:
    images, sizes = SmallWebP(60)(pictures)
    assert sizes.max() <= 60
    dot = np.stack([np.asarray(Image.fromarray(i).resize((1, 1), Image.Resampling.LANCZOS)) for i in pictures])
    assert psnr(images, pictures) > psnr(np.broadcast_to(dot, pictures.shape), pictures)
    assert psnr(SmallWebP(1000)(pictures).images, pictures) > psnr(SmallWebP(200)(pictures).images, pictures) + 2.0


def test_the_whole_webp_says_how_many_bytes_it_took(pictures: np.ndarray) -> None:
    images, sizes = WebP()(pictures)
    Image.fromarray(pictures[0]).save(file := io.BytesIO(), "webp", quality=0, method=6)
    assert sizes[0] == len(file.getvalue())
    assert np.array_equal(images[0], np.asarray(Image.open(file).convert("RGB")))


def test_components_are_those_of_a_singular_value_decomposition(crops: np.ndarray) -> None:
    small = np.stack([np.asarray(Image.fromarray(i).reduce(64 // PCA_SIZE), float) for i in crops]) / 255
    rows = small.transpose(0, 3, 1, 2).reshape(len(crops), -1)
    _, scales, expected = np.linalg.svd(rows - rows.mean(0))
    found = fit_principal_components(crops, 3)
    assert np.abs((found._components.numpy() * expected[:3]).sum(1)) == pytest.approx(1.0, abs=1e-3)
    assert (found._step.numpy() * 127 / 5) == pytest.approx(scales[:3] / np.sqrt(len(crops)), rel=1e-3)


def test_a_byte_for_each_of_all_components_gives_back_what_they_were_fitted_to(crops: np.ndarray) -> None:
    images, sizes = fit_principal_components(crops, 48)(crops)
    assert sizes.tolist() == [len(crops)] * len(crops)  # sixteen images have no more components
    coarse = [Image.fromarray(i).reduce(64 // PCA_SIZE).resize((64, 64), Image.Resampling.BICUBIC) for i in crops]
    assert psnr(images, np.stack([np.asarray(i) for i in coarse])) > 35


def test_baselines_are_chosen_for_the_tokenizers_bytes() -> None:
    many, few = ([codec.name for codec in placeholders(max_bytes)] for max_bytes in (48, 12))
    assert many == ["4x4 RGB", "BlurHash, 44 bytes", "WebP, 48 bytes", "ThumbHash", "WebP, quality 0"]
    assert few == ["2x2 RGB", "BlurHash, 12 bytes", "ThumbHash", "WebP, quality 0"]
