"""What a photograph may look like and still be the same photograph."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["augment"]


def augment(
    images: Tensor,
    generator: torch.Generator,
    *,
    max_shift: int,
    batch_size: int | None = None,
    rows: slice = slice(None),
) -> Tensor:
    """Mirrors half of the images [B, 3, S, S], and moves each by up to ``max_shift`` pixels, repeating the border.

    Where the images are the ``rows`` of a larger batch, ``batch_size`` is its size, and they get the views that they
    would get in it.
    """
    count, device, size = batch_size or len(images), images.device, images.shape[-1]
    mirrored = (torch.rand(count, generator=generator) < 0.5)[rows].to(device)
    moves = torch.randint(-max_shift, max_shift + 1, (2, count, 1), generator=generator)[:, rows].to(device)
    y, x = (torch.arange(size, device=device) + moves).clamp_(0, size - 1)  # [B, S] each
    x = torch.where(mirrored[:, None], x.flip(1), x)
    which = torch.arange(len(images), device=device)[:, None, None, None]
    channels = torch.arange(3, device=device)[None, :, None, None]
    return images[which, channels, y[:, None, :, None], x[:, None, None, :]]
