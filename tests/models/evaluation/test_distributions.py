"""Fréchet and kernel distance against other implementations and against what is known of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from models.evaluation.distributions import BLOCK, Gaussian, frechet_distance, inception_score, kernel_distance


def sample(rows: int, columns: int = 8, *, seed: int, shift: float = 0.0) -> torch.Tensor:
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(columns, columns))
    return torch.from_numpy(random.normal(shift, 1.0, (rows, columns)) @ mixing)


def by_definition(x: np.ndarray, y: np.ndarray) -> float:
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real))


@pytest.mark.parametrize(("rows", "others"), [(200, 150), (6, 150), (6, 5)], ids=["many", "few and many", "few"])
def test_the_frechet_distance_is_that_of_the_definition(rows: int, others: int) -> None:
    x, y = sample(rows, seed=0), 1.5 * sample(others, seed=1, shift=0.3)
    # scipy's root of a singular matrix is good to about 1e-7 of its trace.
    assert frechet_distance(Gaussian.fit(x), Gaussian.fit(y)) == pytest.approx(
        by_definition(x.numpy(), y.numpy()), rel=1e-5
    )


def test_the_frechet_distance_of_shifted_copies_is_the_squared_shift() -> None:
    x = sample(300, seed=0)
    assert frechet_distance(Gaussian.fit(x), Gaussian.fit(x + 2.0)) == pytest.approx(8 * 2.0**2)
    assert frechet_distance(Gaussian.fit(x), Gaussian.fit(x)) == pytest.approx(0.0, abs=1e-9)


def test_the_kernel_distance_is_that_of_the_definition() -> None:
    x, y = sample(40, seed=0).numpy(), sample(40, seed=1, shift=0.5).numpy()

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return cdist(a, b, lambda u, v: (u @ v / 8 + 1) ** 3)

    pairs = [kernel(z, z)[~np.eye(40, dtype=bool)].mean() for z in (x, y)]
    expected = sum(pairs) - 2 * kernel(x, y).mean()
    assert kernel_distance(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected)


def test_the_kernel_distance_of_one_distribution_is_zero_in_the_mean() -> None:
    same = [kernel_distance(sample(200, seed=2 * i), sample(200, seed=2 * i + 1)) for i in range(30)]
    error = np.std(same) / math.sqrt(len(same))
    assert abs(np.mean(same)) < 3 * error
    assert kernel_distance(sample(200, seed=0), sample(200, seed=1, shift=1.0)) > 30 * error


def test_subsets_agree_with_the_whole_and_are_reproducible() -> None:
    x, y = sample(600, seed=0), sample(500, seed=1, shift=1.0)
    subsets = kernel_distance(x, y, subsets=40, subset_size=200)
    assert subsets == kernel_distance(x, y, subsets=40, subset_size=200)
    assert subsets == pytest.approx(kernel_distance(x[:500], y), rel=0.1)


def test_a_single_image_has_no_distribution() -> None:
    assert math.isnan(frechet_distance(Gaussian.fit(sample(1, seed=0)), Gaussian.fit(sample(9, seed=1))))
    assert math.isnan(kernel_distance(sample(1, seed=0), sample(9, seed=1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_blocks_of_rows_have_the_moments_of_the_whole(dtype: torch.dtype) -> None:
    x = sample(2 * BLOCK + 100, seed=0, shift=5.0).to(dtype)
    found = Gaussian.fit(x)
    np.testing.assert_allclose(found.mean, x.double().numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.root.T @ found.root, np.cov(x.double().numpy(), rowvar=False), rtol=1e-9)


def test_a_mean_and_a_covariance_are_as_good_as_the_rows() -> None:
    x, y = sample(300, seed=0), sample(200, seed=1, shift=0.5)
    stated = Gaussian.of(x.numpy().mean(0), np.cov(x.numpy(), rowvar=False))
    assert frechet_distance(stated, Gaussian.fit(y)) == pytest.approx(by_definition(x.numpy(), y.numpy()), rel=1e-5)


def test_the_inception_score_is_that_of_the_definition_in_each_split() -> None:
    features, weights = sample(2 * BLOCK, seed=0), torch.from_numpy(np.random.default_rng(7).normal(size=(5, 8)))
    logits = (features @ weights.T).numpy()
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = [
        math.exp((part * (np.log(part) - np.log(part.mean(0)))).sum(1).mean())
        for part in (probabilities[: BLOCK + 10], probabilities[BLOCK + 10 :])
    ]
    found = inception_score(features.float(), weights.float(), split_size=BLOCK + 10)
    assert found == pytest.approx(np.mean(expected), rel=1e-5)
