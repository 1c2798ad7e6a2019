"""Samples of a Gaussian posterior."""

from __future__ import annotations

import numpy as np
import pytest

from models.codes.posterior import posterior_samples


def moments(mean: float, variance: float, *, count: int = 1, shape: tuple[int, int] = (64, 64)) -> np.ndarray:
    first = np.full((count, *shape), mean, np.float32)
    return np.concatenate([first, np.full_like(first, np.log(variance))], axis=2)


def test_samples_have_mean_and_variance_of_the_posterior() -> None:
    samples = posterior_samples(moments(2.0, 0.25, count=2), [3, 4])
    assert samples.dtype == np.float32
    assert samples.mean() == pytest.approx(2.0, abs=0.02)
    assert samples.std() == pytest.approx(0.5, abs=0.01)
    assert np.abs(samples - 2.0).max() < 6 * 0.5
    assert np.corrcoef(samples[0].flat, samples[1].flat)[0, 1] == pytest.approx(0.0, abs=0.05)


def test_a_sample_depends_on_its_seed_alone() -> None:
    rows = moments(0.0, 1.0, count=3, shape=(4, 2))
    together = posterior_samples(rows, [5, 2**63 - 1, 5])
    assert (together[0] == together[2]).all()
    assert (together[1] == posterior_samples(rows[:1], [2**63 - 1])[0]).all()
    assert (together[0] != together[1]).all()


def test_the_noise_of_a_seed_is_fixed() -> None:
    noise = posterior_samples(moments(0.0, 1.0, shape=(1, 3)), [7])
    assert noise[0, 0].tolist() == pytest.approx([-0.4334718, 1.3549219, -0.4333872], abs=1e-6)


def test_each_image_needs_a_seed() -> None:
    with pytest.raises(ValueError, match="3 images need as many seeds, not 1"):
        posterior_samples(moments(0.0, 1.0, count=3), [1])
