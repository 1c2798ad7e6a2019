"""What is minimised. All of it runs in float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["masked_token_loss", "pixel_loss", "proxy_code_loss", "random_masks"]


def pixel_loss(outputs: Tensor, images: Tensor, *, l1_weight: float) -> Tensor:
    """Mean squared error plus ``l1_weight`` times the mean absolute error; images [B, 3, S, S] in [0, 1]."""
    difference = outputs.float() - images
    return difference.square().mean() + l1_weight * difference.abs().mean()


def proxy_code_loss(logits: Tensor, codes: Tensor) -> Tensor:
    """Mean cross-entropy of proxy-code logits [B, N, V] and the frozen 2-D tokenizer's codes int64 [B, N].

    Source: TiTok, first training stage (arXiv 2406.07550, section 3.3).
    """
    return F.cross_entropy(logits.flatten(0, 1).float(), codes.flatten())


def masked_token_loss(
    logits: Tensor, tokens: Tensor, masked: Tensor, *, label_smoothing: float, visible_weight: float
) -> Tensor:
    """Cross-entropy of logits [B, K, V] and tokens int64 [B, K]; where not ``masked`` it counts ``visible_weight``."""
    each = F.cross_entropy(logits.mT.float(), tokens, reduction="none", label_smoothing=label_smoothing)
    weights = torch.where(masked, 1.0, visible_weight)
    return (each * weights).sum() / weights.sum()


def random_masks(batch: int, length: int, generator: torch.Generator) -> Tensor:
    """Which tokens the generator must guess, bool [B, K]: the arccos schedule at a random moment, at least one."""
    moment = torch.rand(batch, generator=generator)
    count = (length * torch.acos(moment) / (math.pi / 2)).round().clamp(min=1)
    order = torch.rand(batch, length, generator=generator).argsort(dim=1).argsort(dim=1)
    return order < count[:, None]
