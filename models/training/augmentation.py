"""What a photograph may look like and still be the same photograph."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["random_views"]


def random_views(images: Tensor, generator: torch.Generator, *, max_shift: int) -> Tensor:
    """Mirrors half of the images [B, 3, S, S], and moves each by up to ``max_shift`` pixels, repeating the border."""
    batch, _, size, _ = images.shape
    mirrored = torch.rand(batch, generator=generator) < 0.5
    moves = torch.randint(-max_shift, max_shift + 1, (2, batch, 1), generator=generator)
    rows, columns = (torch.arange(size) + moves).clamp_(0, size - 1)  # [B, S] each
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    which = torch.arange(batch)[:, None, None, None]
    channels = torch.arange(3)[None, :, None, None]
    return images[which, channels, rows[:, None, :, None], columns[:, None, None, :]]
