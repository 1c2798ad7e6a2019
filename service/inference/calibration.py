"""How close the choice of a code must be for an image to be encoded alone: measured before a tokenizer has much to do.

Until it is, caution encodes one in eight images twice, of the shipped checkpoint as of S-128, instead of one in a hundred.
"""

from __future__ import annotations

import numpy as np
import torch

from models import Tokenizer
from models.runtime.cpu_threads import torch_threads
from service.inference.batch_limits import batch_sizes

__all__ = ["calibrate"]

_CPU_DECISIONS, _LEAST_PROBES, _CUDA_PROBES = 256, 2, 64
_SECONDS = 1.5


def calibrate(tokenizer: Tokenizer, largest_batch: int, *, threads: int | None = None) -> None:
    """For batches up to the largest, or as many sizes as a second and a half is enough for. ``threads``: of PyTorch, that
    batches will be computed with; None: as many as now.
    """
    sizes = sorted({*batch_sizes(largest_batch), 3, largest_batch - 1} & set(range(2, largest_batch + 1)))
    side, random = tokenizer.image_size, np.random.default_rng(0)
    # What takes a CPU longest has most tokens: as many of them tell as much.
    on_cpu = tokenizer.device.type == "cpu"
    probes = max(_LEAST_PROBES, _CPU_DECISIONS // tokenizer.num_tokens) if on_cpu else _CUDA_PROBES
    coarse = random.integers(0, 256, (probes, side // 8, side // 8, 3), np.uint8)
    images = coarse.repeat(8, axis=1).repeat(8, axis=2)
    with torch_threads(threads or torch.get_num_threads()):
        tokenizer.calibrate(images, sizes, seconds=_SECONDS)
