"""Metrics of seams and code usage, for the training log and the report."""

import torch
from torch import Tensor


def patch_steps(images: Tensor, patch: int) -> Tensor:
    """Mean absolute difference of neighbouring pixels across patch borders and inside patches, [B, 2] of [B, 3, S, S].

    The first is NaN if the image is one patch.
    """
    found = []
    for rows in (images, images.mT):
        steps = rows.diff(dim=-1).abs()  # the step from column x to x + 1 crosses a border where x + 1 is a multiple
        border = torch.arange(1, rows.shape[-1], device=rows.device) % patch == 0
        found.append(torch.stack([steps[..., which].mean((1, 2, 3)) for which in (border, ~border)], dim=1))
    return (found[0] + found[1]) / 2


def seam_ratio(images: Tensor, patch: int) -> float:
    """Mean difference of neighbouring pixels across patch borders over that inside patches; 1 means no visible grid."""
    across, inside = patch_steps(images, patch).mean(0)
    return float(across / inside)


def entropy_bits(counts: Tensor) -> float:
    """Entropy, in bits, of how often each code [V] was used."""
    shares = counts[counts > 0].double() / counts.sum()
    return float(-(shares * shares.log2()).sum())
