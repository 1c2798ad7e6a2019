"""Figures of reconstructions and codes, as the log and the model card give them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["entropy_bits", "psnr", "seam_ratio"]


def psnr(outputs: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, dB, float32 [B]; both [B, 3, S, S], peak 1, clamped to [0, 1]."""
    return -10.0 * (outputs.clamp(0, 1) - images).square().flatten(1).mean(1).log10()


def seam_ratio(images: Tensor, patch: int) -> float:
    """Mean absolute difference of neighbours across patch borders over that inside patches: 1 shows no grid."""
    across: list[Tensor] = []
    inside: list[Tensor] = []
    for rows in (images, images.mT):
        steps = rows.diff(dim=-1).abs()  # the step from column x to x + 1 crosses a border where x + 1 is a multiple
        border = torch.arange(1, rows.shape[-1]) % patch == 0
        across.append(steps[..., border].mean())
        inside.append(steps[..., ~border].mean())
    return float(sum(across) / sum(inside))


def entropy_bits(counts: Tensor) -> float:
    """Entropy, in bits, of how often each code [V] was used."""
    shares = counts[counts > 0].double() / counts.sum()
    return float(-(shares * shares.log2()).sum())
