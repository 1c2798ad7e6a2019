"""Many images from a few photographs."""

from __future__ import annotations

import numpy as np
from PIL import Image

from models.preprocess import eval_crop

__all__ = ["crops_of"]


def crops_of(photographs: list[Image.Image], count: int) -> np.ndarray:
    """Crops at many places, the same every time: uint8 [count, 128, 128, 3]."""
    rng = np.random.default_rng(0)
    crops = []
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        left, top = rng.integers(0, photograph.width - 130), rng.integers(0, photograph.height - 130)
        side = int(rng.integers(100, 130))
        crops.append(eval_crop(photograph.crop((left, top, left + side, top + side)), 128))
    return np.stack(crops)
