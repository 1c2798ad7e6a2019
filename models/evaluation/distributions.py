"""Fréchet distance and kernel distance of two sets of image features, in float64, and the Inception Score of one.

With Inception features the distances are FID and KID; values for Lite0 features compare only with each other. Features are
tensors [N, C] of any float type, possibly mapped from a file: they are read in blocks, so that memory does not depend on N.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

BLOCK = 4096
"""Rows of features that are computed with together."""

Matrix = NDArray[np.float64]


class Gaussian(NamedTuple):
    """A normal distribution: ``mean`` float64 [C], and ``root`` [R, C] with root' root the covariance; R is 0 if unknown."""

    mean: Matrix
    root: Matrix

    @classmethod
    def fit(cls, features: Tensor) -> Gaussian:
        """The distribution of rows [N, C], with the covariance's N - 1; it is unknown for fewer than two rows."""
        count, columns = features.shape
        blocks = torch.split(features, BLOCK)
        mean = sum((_matrix(block).sum(0) for block in blocks), np.zeros(columns)) / count
        if count < 2:
            return cls(mean, np.zeros((0, columns)))
        if count <= columns:
            return cls(mean, (_matrix(features) - mean) / math.sqrt(count - 1))
        products = np.zeros((columns, columns))
        for block in blocks:
            centred = _matrix(block) - mean
            products += centred.T @ centred
        return cls.of(mean, products / (count - 1))

    @classmethod
    def of(cls, mean: Matrix, covariance: Matrix) -> Gaussian:
        """The distribution of a mean [C] and a covariance [C, C]."""
        variances, vectors = np.linalg.eigh(covariance)
        return cls(mean, np.sqrt(variances.clip(min=0))[:, None] * vectors.T)


def frechet_distance(x: Gaussian, y: Gaussian) -> float:
    """Squared Fréchet distance of two normal distributions; NaN if a covariance is unknown.

    |mean - mean'|^2 + tr(S + S' - 2 (S S')^(1/2)) (Heusel et al., arXiv 1706.08500). It is larger for smaller sets, and
    unreliable for fewer rows than columns; compare only sets of one size.
    """
    if not len(x.root) or not len(y.root):
        return math.nan
    gap = float(np.square(x.mean - y.mean).sum())
    # With S = A'A and S' = B'B, the trace of the root of their product is the sum of the singular values of A B'.
    shared = np.linalg.svd(x.root @ y.root.T, compute_uv=False).sum()
    return max(float(gap + np.square(x.root).sum() + np.square(y.root).sum() - 2 * shared), 0.0)


def kernel_distance(
    features: Tensor, others: Tensor, *, subsets: int = 10, subset_size: int = 1000, seed: int = 0
) -> float:
    """Squared maximum mean discrepancy of [N, C] and [M, C], with the kernel (x.y / C + 1)^3.

    The unbiased estimate, around 0 for two samples of one distribution, the mean over random subsets (Binkowski et al.,
    arXiv 1801.01401, section 4). Subsets have at most as many rows as the smaller set.
    """
    size = min(subset_size, len(features), len(others))
    if size < 2:
        return math.nan
    if size == len(features) == len(others):
        return _discrepancy(_matrix(features), _matrix(others))
    random = np.random.default_rng(seed)

    def draw(rows: Tensor) -> Matrix:
        return _matrix(rows[torch.from_numpy(random.choice(len(rows), size, replace=False))])

    return float(np.mean([_discrepancy(draw(features), draw(others)) for _ in range(subsets)]))


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


def inception_score(features: Tensor, class_weights: Tensor, *, split_size: int) -> float:
    """The Inception Score of features [N, C] by ``class_weights`` [classes, C], the mean over splits of ``split_size`` rows.

    exp of the mean of KL(p(y | x), p(y)) (Salimans et al., arXiv 1606.03498), of logits without bias as published.
    """
    scores = []
    for split in torch.split(features, split_size):
        marginal, information = torch.zeros(len(class_weights), dtype=torch.float64), 0.0
        for block in torch.split(split, BLOCK):
            logarithms = F.log_softmax(block.float() @ class_weights.T, dim=1).double()
            shares = logarithms.exp()
            marginal += shares.sum(0)
            information += float((shares * logarithms).sum())
        marginal /= len(split)
        scores.append(math.exp(information / len(split) - float(torch.xlogy(marginal, marginal).sum())))
    return sum(scores) / len(scores)
