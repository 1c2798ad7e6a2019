"""PSNR and SSIM agree with scikit-image's; seams and entropy with what they must be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from models.evaluation.measures import entropy_bits, patch_steps, psnr, seam_ratio, ssim


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    original = data.astronaut()[:128, 100:228]
    noise = np.random.default_rng(0).normal(0, 12, original.shape)
    return original, np.clip(original + noise, 0, 255).astype(np.uint8)


def as_batch(*images: np.ndarray, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(dtype) / 255


def test_psnr_is_the_known_one_and_infinite_for_a_copy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    original, noisy = pair
    noised, copied = psnr(as_batch(noisy, original), as_batch(original, original)).tolist()
    assert noised == pytest.approx(peak_signal_noise_ratio(original, noisy))
    assert math.isinf(copied)


def test_ssim_is_the_known_one_and_1_for_a_copy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    original, noisy = pair
    expected = structural_similarity(
        original, noisy, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    noised, copied = ssim(as_batch(noisy, original), as_batch(original, original)).tolist()
    assert noised == pytest.approx(expected, abs=2e-3)
    assert copied == pytest.approx(1.0)


def test_single_precision_is_enough_for_both(pair: tuple[np.ndarray, np.ndarray]) -> None:
    original, noisy = pair
    for measure in (psnr, ssim):
        exact = measure(as_batch(noisy), as_batch(original))
        single = measure(as_batch(noisy, dtype=torch.float32), as_batch(original, dtype=torch.float32))
        torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=0)


def test_steps_are_counted_on_borders_and_inside_of_each_image() -> None:
    stripes = (torch.arange(8) // 4).float().expand(1, 3, 8, 8)  # one border of two patches, a step of 1 there
    flat = torch.zeros(1, 3, 8, 8)
    across, inside = patch_steps(torch.cat([stripes, flat]), 4).T
    assert across.tolist() == [0.5, 0.0]  # the stripes are upright: no step from row to row
    assert inside.tolist() == [0.0, 0.0]


def test_psnr_of_a_tenth_is_twenty_decibels() -> None:
    images = torch.full((2, 3, 8, 8), 0.5)
    torch.testing.assert_close(psnr(images + 0.1, images), torch.tensor([20.0, 20.0]), rtol=1e-5, atol=0)


def test_a_grid_of_flat_patches_has_seams_and_noise_has_none() -> None:
    noise = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert seam_ratio(noise, 16) == pytest.approx(1.0, abs=0.02)
    patches = noise[..., :4, :4].repeat_interleave(16, 2).repeat_interleave(16, 3)
    assert seam_ratio(patches + 0.01 * noise, 16) > 10


def test_entropy_of_equally_used_codes_is_their_number_of_bits() -> None:
    assert entropy_bits(torch.tensor([5, 5, 0, 5, 5])) == pytest.approx(2.0)
