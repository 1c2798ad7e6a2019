"""How far apart two sets of images are as a whole: Fréchet distance and kernel distance of their features.

With Inception's features these are FID and KID; with Lite0's the arithmetic is the same and the numbers are not, so
they compare with each other only. Both are worked out in float64.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["frechet_distance", "kernel_distance"]

Matrix = NDArray[np.float64]


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """Squared Fréchet distance of the normal distributions fitted to [N, C] and [M, C]; not a number below 2 rows.

    |mean - mean'|^2 + tr(S + S' - 2 (S S')^(1/2)), covariances with N - 1 (Heusel et al., arXiv 1706.08500). It grows as
    the sets get smaller, and is of little use where they have fewer rows than columns; sets of one size compare.
    """
    x, y = _matrix(features), _matrix(others)
    if min(len(x), len(y)) < 2:
        return math.nan
    gap = float(np.square(x.mean(0) - y.mean(0)).sum())
    a, b = _root(x), _root(y)
    # With S = A'A and S' = B'B, the trace of the root of their product is the sum of the singular values of A B'.
    shared = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return max(float(gap + np.square(a).sum() + np.square(b).sum() - 2 * shared), 0.0)


def kernel_distance(
    features: Tensor, others: Tensor, *, subsets: int = 10, subset_size: int = 1000, seed: int = 0
) -> float:
    """Squared maximum mean discrepancy of [N, C] and [M, C], with the kernel (x.y / C + 1)^3.

    The unbiased estimate, around 0 for two samples of one distribution and possibly below, as a mean over random subsets
    (Binkowski et al., arXiv 1801.01401, section 4). Where a set has fewer than ``subset_size`` rows, subsets are as large
    as the smaller set.
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


def _root(rows: Matrix) -> Matrix:
    """A matrix whose product with itself, A'A, is the covariance of the rows [N, C]: [min(N, C), C]."""
    centred: Matrix = (rows - rows.mean(0)) / math.sqrt(len(rows) - 1)
    if len(rows) <= rows.shape[1]:
        return centred
    return cast(Matrix, np.linalg.qr(centred, mode="r"))


def _discrepancy(x: Matrix, y: Matrix) -> float:
    """Of as many rows each. Pairs of a row with itself are left out within a set, as they would be its bias."""
    count = len(x)
    within = sum(float(kernel.sum() - np.trace(kernel)) for kernel in (_kernel(x, x), _kernel(y, y)))
    return within / (count * (count - 1)) - 2 * float(_kernel(x, y).mean())


def _kernel(x: Matrix, y: Matrix) -> Matrix:
    kernel: Matrix = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel


def _matrix(features: Tensor) -> Matrix:
    return features.double().numpy()
