"""Perceptual distance of images: LPIPS on EfficientNet-Lite0 features.

::

    features of five blocks  ->  unit length along channels  ->  squared difference, summed over channels
                             ->  mean over positions         ->  sum over the blocks

After Zhang et al., arXiv 1801.03924, with EfficientNet-Lite0 instead of VGG and without learned channel weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Added to the squared length of a feature, so that the gradient of a zero feature is finite.
_EPSILON = 1e-8


def perceptual_distance(features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """The distance of each pair, float32 [B], from 0 to 4 a block; differentiable.

    Arguments are outputs of ``Lite0.features``, [B, C, H, W] a block; a batch of one is compared with every image of the
    other. Computed in float32.
    """
    blocks = [(_unit(x) - _unit(y)).square().sum(1).mean((1, 2)) for x, y in zip(features, others, strict=True)]
    return torch.stack(blocks).sum(0)


def _unit(x: Tensor) -> Tensor:
    x = x.float()
    return x * (x.square().sum(1, keepdim=True) + _EPSILON).rsqrt()
