"""Data augmentation: random flips and shifts."""

from __future__ import annotations

import torch
from torch import Tensor


def augment(
    images: Tensor,
    generator: torch.Generator,
    *,
    max_shift: int,
    batch_size: int | None = None,
    rows: slice = slice(None),
) -> Tensor:
    """Flips half of the images [B, 3, S, S], and shifts each by up to ``max_shift`` pixels, repeating the border.

    If the images are the ``rows`` of a larger batch of ``batch_size``, they are augmented as in the whole batch.
    """
    count, device, size = batch_size or len(images), images.device, images.shape[-1]
    flipped = (torch.rand(count, generator=generator) < 0.5)[rows].to(device)
    shifts = torch.randint(-max_shift, max_shift + 1, (2, count, 1), generator=generator)[:, rows].to(device)
    y, x = (torch.arange(size, device=device) + shifts).clamp_(0, size - 1)  # [B, S] each
    x = torch.where(flipped[:, None], x.flip(1), x)
    image = torch.arange(len(images), device=device)[:, None, None, None]
    channels = torch.arange(3, device=device)[None, :, None, None]
    return images[image, channels, y[:, None, :, None], x[:, None, None, :]]
