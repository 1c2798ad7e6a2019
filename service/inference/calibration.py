"""Measures the margin below which batch rounding can change a token id, so that such images are re-encoded unbatched.

Without the measurement a conservative margin re-encodes one image in eight instead of one in a hundred (bundled checkpoint
and S-128).
"""

from __future__ import annotations

import numpy as np
import torch

from models import Tokenizer
from models.runtime.cpu_threads import torch_threads
from service.inference.batch_limits import batch_sizes

_CPU_DECISIONS, _LEAST_PROBES, _CUDA_PROBES = 256, 2, 64
_SECONDS = 1.5


def calibrate(tokenizer: Tokenizer, largest_batch: int, *, threads: int | None = None) -> None:
    """Calibrates for batch sizes up to the largest, or as many as fit into 1.5 seconds. ``threads``: the PyTorch threads
    that batches will use; None: the current number.
    """
    sizes = sorted({*batch_sizes(largest_batch), 3, largest_batch - 1} & set(range(2, largest_batch + 1)))
    side, random = tokenizer.image_size, np.random.default_rng(0)
    # On a CPU, tokenizers with many tokens are the slowest, and need fewer images for the same number of decisions.
    on_cpu = tokenizer.device.type == "cpu"
    probes = max(_LEAST_PROBES, _CPU_DECISIONS // tokenizer.num_tokens) if on_cpu else _CUDA_PROBES
    coarse = random.integers(0, 256, (probes, side // 8, side // 8, 3), np.uint8)
    images = coarse.repeat(8, axis=1).repeat(8, axis=2)
    with torch_threads(threads or torch.get_num_threads()):
        tokenizer.calibrate(images, sizes, seconds=_SECONDS)
