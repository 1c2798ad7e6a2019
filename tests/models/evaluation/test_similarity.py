"""PSNR and SSIM agree with scikit-image's, on tensors and on arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from models.evaluation.similarity import psnr, ssim


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    original = data.astronaut()[:128, 100:228]
    noise = np.random.default_rng(0).normal(0, 12, original.shape)
    return original, np.clip(original + noise, 0, 255).astype(np.uint8)


def as_batch(*images: np.ndarray, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(dtype) / 255


def test_psnr_is_as_computed_by_hand_and_infinite_for_a_copy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    original, noisy = pair
    noised, copied = psnr(as_batch(noisy, original), as_batch(original, original)).tolist()
    assert noised == pytest.approx(peak_signal_noise_ratio(original, noisy))
    assert math.isinf(copied)


def test_ssim_is_as_published_and_1_for_a_copy(pair: tuple[np.ndarray, np.ndarray]) -> None:
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


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_arrays_and_tensors_have_the_same_figures(measure: object, pair: tuple[np.ndarray, np.ndarray]) -> None:
    original, noisy = (as_batch(image, image) for image in pair)
    of_tensors = measure(noisy, original)  # type: ignore[operator]
    of_arrays = measure(noisy.numpy(), original.numpy())  # type: ignore[operator]
    assert isinstance(of_arrays, np.ndarray)
    np.testing.assert_allclose(of_arrays, of_tensors.numpy(), rtol=1e-12)
    assert math.isinf(psnr(original.numpy(), original.numpy())[0])


def test_psnr_of_a_tenth_is_twenty_decibels() -> None:
    images = torch.full((2, 3, 8, 8), 0.5)
    torch.testing.assert_close(psnr(images + 0.1, images), torch.tensor([20.0, 20.0]), rtol=1e-5, atol=0)
