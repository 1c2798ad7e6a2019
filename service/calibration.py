"""How close the choice of a code must be for an image to be encoded alone: measured before a tokenizer has much to do.

Until it is, caution encodes one in eight of the shipped checkpoint's images twice, instead of one in a hundred.
"""

from __future__ import annotations

import numpy as np

from models import Tokenizer
from service.batch_limits import batch_sizes

__all__ = ["calibrate"]

_CPU_PROBES, _CUDA_PROBES = 8, 64
_SECONDS = 1.0


def calibrate(tokenizer: Tokenizer, largest_batch: int) -> None:
    """For batches up to the largest. Gives up, and leaves the tokenizer as cautious as it was, after a second."""
    sizes = sorted({*batch_sizes(largest_batch), 3, largest_batch - 1} & set(range(2, largest_batch + 1)))
    side, random = tokenizer.image_size, np.random.default_rng(0)
    probes = _CPU_PROBES if tokenizer.device.type == "cpu" else _CUDA_PROBES
    coarse = random.integers(0, 256, (probes, side // 8, side // 8, 3), np.uint8)
    images = coarse.repeat(8, axis=1).repeat(8, axis=2)
    tokenizer.calibrate(images, sizes, seconds=_SECONDS)
