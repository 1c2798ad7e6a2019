"""Scaled dot-product attention: a fused kernel, or separate operators for training on a CPU."""

import math

from torch import Tensor
from torch.nn import functional as F


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, *, fused: bool) -> Tensor:
    """Queries [B, M, D] over keys and values [B, N, D] -> [B, M, D], in H ``heads``; no mask, scale 1/sqrt(D/H).

    Without ``fused``, a CPU uses separate operators: the fused kernel's backward pass takes half of a training step.
    """
    q, k, v = (x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))  # [B, H, M or N, D/H]
    if fused or q.device.type != "cpu":
        out = F.scaled_dot_product_attention(q, k, v)
    else:
        weights = (q @ k.transpose(-1, -2) * (1.0 / math.sqrt(q.shape[-1]))).softmax(dim=-1)
        out = weights.to(v.dtype) @ v
    return out.transpose(1, 2).flatten(2)
