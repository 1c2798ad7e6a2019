"""Figures of reconstructions and codes, as the service, the training log and the report give them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["entropy_bits", "patch_steps", "psnr", "seam_ratio", "ssim"]


def psnr(outputs: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, dB, [B]; both [B, 3, S, S], peak 1; infinite for equal ones.

    ``outputs`` are clamped to [0, 1]. The result has the dtype of the images.
    """
    return -10.0 * (outputs.clamp(0, 1) - images).square().flatten(1).mean(1).log10()


def ssim(outputs: Tensor, images: Tensor) -> Tensor:
    """Structural similarity of each image, in [-1, 1], [B]; both [B, 3, S, S], peak 1, S at least 11.

    The mean over pixels and channels. Gaussian window of 11 pixels, sigma 1.5, k1 0.01, k2 0.03, as Wang et al. (IEEE
    TIP 13(4), 2004) define it; only pixels whose whole window lies in the image count.
    """
    window = torch.exp(-((torch.arange(11, dtype=images.dtype, device=images.device) - 5.0) ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def blurred(x: Tensor) -> Tensor:
        planes = x.flatten(0, 1)[:, None]
        found = F.conv2d(F.conv2d(planes, window.view(1, 1, 11, 1)), window.view(1, 1, 1, 11))
        return found.view(*x.shape[:2], *found.shape[2:])

    x, y = outputs.clamp(0, 1), images
    mean_x, mean_y = blurred(x), blurred(y)
    variance_x, variance_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    return similarity.flatten(1).mean(1)


def patch_steps(images: Tensor, patch: int) -> Tensor:
    """Mean absolute difference of neighbours across patch borders, and inside patches: [B, 2] of [B, 3, S, S].

    The first is not a number where the image is one patch.
    """
    found = []
    for rows in (images, images.mT):
        steps = rows.diff(dim=-1).abs()  # the step from column x to x + 1 crosses a border where x + 1 is a multiple
        border = torch.arange(1, rows.shape[-1], device=rows.device) % patch == 0
        found.append(torch.stack([steps[..., which].mean((1, 2, 3)) for which in (border, ~border)], dim=1))
    return (found[0] + found[1]) / 2


def seam_ratio(images: Tensor, patch: int) -> float:
    """Mean absolute difference of neighbours across patch borders over that inside patches: 1 shows no grid."""
    across, inside = patch_steps(images, patch).mean(0)
    return float(across / inside)


def entropy_bits(counts: Tensor) -> float:
    """Entropy, in bits, of how often each code [V] was used."""
    shares = counts[counts > 0].double() / counts.sum()
    return float(-(shares * shares.log2()).sum())
