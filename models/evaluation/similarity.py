"""How alike two images are: PSNR and SSIM."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

__all__ = ["psnr", "ssim"]

Pixels = npt.NDArray[np.uint8]


def psnr(image: Pixels, reference: Pixels) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 arrays of one shape; infinite for equal ones."""
    error = float(np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2))
    return math.inf if error == 0.0 else 10.0 * math.log10(255.0**2 / error)


def ssim(image: Pixels, reference: Pixels) -> float:
    """Structural similarity in [-1, 1] of two images uint8 [H, W, 3], the mean over pixels and channels.

    Gaussian window of 11 pixels, sigma 1.5, k1 0.01, k2 0.03, as Wang et al. (IEEE TIP 13(4), 2004) define it; only
    pixels whose whole window lies in the image count.
    """
    window = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5.0) ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def blurred(x: torch.Tensor) -> torch.Tensor:  # [3, 1, H, W]
        return F.conv2d(F.conv2d(x, window.view(1, 1, 11, 1)), window.view(1, 1, 1, 11))

    x, y = (torch.from_numpy(a.astype(np.float64)).permute(2, 0, 1)[:, None] for a in (image, reference))
    mean_x, mean_y = blurred(x), blurred(y)
    variance_x, variance_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((numerator / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))).mean())
