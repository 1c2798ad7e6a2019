"""Weights to start from.

With the published 0.02 for every matrix a narrow network stays at the mean image for a thousand steps. Here each matrix
keeps the variance of its input (normal, 1/sqrt(fan-in)), and the last layer begins near its own constant answer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["initialise", "plane_waves"]


@torch.no_grad()
def initialise(network: nn.Module, *, last: nn.Linear | nn.Conv2d, last_std: float) -> None:
    """Sets linear layers and convolutions; ``last`` gets ``last_std``. Embeddings keep what the network gave them."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.weight.normal_(0.0, module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                module.bias.zero_()
    last.weight.normal_(0.0, last_std)


def plane_waves(grid: int, width: int) -> Tensor:
    """Positional embeddings float32 [G*G, D] of mean square 1 in which neighbours are alike.

    Sines and cosines of the row in one half and of the column in the other, with periods from two cells to four grids.
    """
    periods = torch.logspace(math.log2(2.0), math.log2(4.0 * grid), -(-width // 4), base=2.0)
    angles = 2.0 * math.pi * (torch.arange(grid) + 0.5)[:, None] / periods
    line = torch.cat([angles.sin(), angles.cos()], dim=1)[:, : width // 2]  # [G, D/2]
    rows, columns = line[:, None].expand(-1, grid, -1), line[None].expand(grid, -1, -1)
    return math.sqrt(2.0) * torch.cat([rows, columns], dim=2).flatten(0, 1)
