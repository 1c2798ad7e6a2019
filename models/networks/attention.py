"""Scaled dot-product attention: a fused kernel, or separate operators for training on a CPU."""

import math

from torch import Tensor
from torch.nn import functional as F


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    *,
    fused: bool,
    present: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Queries [B, M, D] over keys and values [B, N, D] -> [B, M, D], in H ``heads``; scale 1/sqrt(D/H).

    ``present`` bool [B, N] marks the positions that are attended to; None: all. A weight is zeroed with the probability
    ``dropout``; the others are scaled by 1 / (1 - dropout).

    Without ``fused``, a CPU uses separate operators: the fused kernel's backward pass takes half of a training step.
    """
    q, k, v = (x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))  # [B, H, M or N, D/H]
    mask = None if present is None else present[:, None, None]
    if fused or q.device.type != "cpu":
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    else:
        scores = q @ k.transpose(-1, -2) * (1.0 / math.sqrt(q.shape[-1]))
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        out = F.dropout(scores.softmax(dim=-1), dropout).to(v.dtype) @ v
    return out.transpose(1, 2).flatten(2)
