"""Samples of a VAE's Gaussian posterior by seed.

The noise depends on seed and position only, so samples do not depend on batches or devices: it is made with NumPy's
counter-based generator (Philox: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") and the transform of Box
and Muller (1958), in float64 on the CPU, and rounded to float32.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.arrays import Latents


def posterior_samples(moments: Latents, seeds: Sequence[int]) -> Latents:
    """Moments float32 [B, K, 2C], mean and log-variance, and B seeds in 0..2**63-1 -> samples float32 [B, K, C].

    Raises ``ValueError`` for another number of seeds, or a negative one.
    """
    if len(seeds) != len(moments):
        raise ValueError(f"{len(moments)} images need as many seeds, not {len(seeds)}")
    mean, log_variance = np.split(moments.astype(np.float64), 2, axis=-1)
    noise = np.stack([_normal(seed, mean.shape[1:]) for seed in seeds])
    return (mean + np.exp(0.5 * log_variance) * noise).astype(np.float32)


def _normal(seed: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    bits = np.random.Philox(key=seed).random_raw((2, *shape))
    first, second = ((bits >> 11) + 0.5) * 2.0**-53  # in (0, 1)
    noise: NDArray[np.float64] = np.sqrt(-2.0 * np.log(first)) * np.cos(2.0 * np.pi * second)
    return noise
