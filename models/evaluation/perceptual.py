"""A perceptual distance: how far apart two images are to a network that knows what is in photographs.

::

    features of five blocks  ->  unit length along channels  ->  squared difference, summed over channels
                             ->  mean over positions         ->  sum over the blocks

This is LPIPS (Zhang et al., arXiv 1801.03924) with EfficientNet-Lite0 for VGG and without learned channel weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["perceptual_distance"]

# Added to the squared length of a feature, so that a feature of zeros has a gradient that is finite.
_EPSILON = 1e-8


def perceptual_distance(features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """The distance of each pair, float32 [B], from 0 to 4 a block; differentiable.

    Both are what ``Lite0.features`` gives, [B, C, H, W] a block; either may have a batch of one, which is then compared
    with every other. Computed in float32 whatever the features are.
    """
    blocks = [(_unit(x) - _unit(y)).square().sum(1).mean((1, 2)) for x, y in zip(features, others, strict=True)]
    return torch.stack(blocks).sum(0)


def _unit(x: Tensor) -> Tensor:
    x = x.float()
    return x * (x.square().sum(1, keepdim=True) + _EPSILON).rsqrt()
