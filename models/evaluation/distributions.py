"""Fréchet distance and kernel distance of two sets of image features, in float64.

With Inception features these are FID and KID; values for Lite0 features compare only with each other.
"""

import math
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Matrix = NDArray[np.float64]


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """Squared Fréchet distance of normal distributions fitted to [N, C] and [M, C]; NaN below 2 rows.

    |mean - mean'|^2 + tr(S + S' - 2 (S S')^(1/2)), covariances with N - 1 (Heusel et al., arXiv 1706.08500). It is
    larger for smaller sets, and unreliable for fewer rows than columns; compare only sets of one size.
    """
    x, y = _matrix(features), _matrix(others)
    if min(len(x), len(y)) < 2:
        return math.nan
    gap = float(np.square(x.mean(0) - y.mean(0)).sum())
    a, b = _covariance_root(x), _covariance_root(y)
    # With S = A'A and S' = B'B, the trace of the root of their product is the sum of the singular values of A B'.
    shared = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return max(float(gap + np.square(a).sum() + np.square(b).sum() - 2 * shared), 0.0)


def kernel_distance(
    features: Tensor, others: Tensor, *, subsets: int = 10, subset_size: int = 1000, seed: int = 0
) -> float:
    """Squared maximum mean discrepancy of [N, C] and [M, C], with the kernel (x.y / C + 1)^3.

    The unbiased estimate, around 0 for two samples of one distribution, the mean over random subsets (Binkowski et al.,
    arXiv 1801.01401, section 4). Subsets have at most as many rows as the smaller set.
    """
    x, y = _matrix(features), _matrix(others)
    size = min(subset_size, len(x), len(y))
    if size < 2:
        return math.nan
    if size == len(x) == len(y):
        return _discrepancy(x, y)
    random = np.random.default_rng(seed)
    drawn = [
        (random.choice(len(x), size, replace=False), random.choice(len(y), size, replace=False)) for _ in range(subsets)
    ]
    return float(np.mean([_discrepancy(x[rows], y[others_rows]) for rows, others_rows in drawn]))


def _covariance_root(rows: Matrix) -> Matrix:
    """A matrix A [min(N, C), C] such that A'A is the covariance of the rows [N, C]."""
    centred: Matrix = (rows - rows.mean(0)) / math.sqrt(len(rows) - 1)
    if len(rows) <= rows.shape[1]:
        return centred
    return cast(Matrix, np.linalg.qr(centred, mode="r"))


def _discrepancy(x: Matrix, y: Matrix) -> float:
    """Of equally many rows. Pairs of a row with itself are excluded: they would bias the estimate."""
    count = len(x)
    within = sum(float(kernel.sum() - np.trace(kernel)) for kernel in (_kernel(x, x), _kernel(y, y)))
    return within / (count * (count - 1)) - 2 * float(_kernel(x, y).mean())


def _kernel(x: Matrix, y: Matrix) -> Matrix:
    kernel: Matrix = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel


def _matrix(features: Tensor) -> Matrix:
    return features.double().numpy()
