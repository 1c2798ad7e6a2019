"""PSNR and SSIM agree with scikit-image's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from models.evaluation.similarity import psnr, ssim


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    original = data.astronaut()[:128, 100:228]
    noise = np.random.default_rng(0).normal(0, 12, original.shape)
    return original, np.clip(original + noise, 0, 255).astype(np.uint8)


def test_psnr_is_the_known_one_and_infinite_for_a_copy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    original, noisy = pair
    assert psnr(noisy, original) == pytest.approx(peak_signal_noise_ratio(original, noisy))
    assert math.isinf(psnr(original, original.copy()))


def test_ssim_is_the_known_one_and_1_for_a_copy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    original, noisy = pair
    expected = structural_similarity(
        original, noisy, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert ssim(noisy, original) == pytest.approx(expected, abs=2e-3)
    assert ssim(original, original.copy()) == pytest.approx(1.0)
