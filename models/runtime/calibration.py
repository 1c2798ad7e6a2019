"""Measures the margin below which rounding can change a token id, so that such images are re-encoded unbatched.

Without the measurement a conservative margin re-encodes one image in eight instead of one in a hundred (bundled checkpoint
and S-128).
"""

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from models.runtime.cpu_threads import torch_threads

_CPU_DECISIONS, _LEAST_PROBES, _CUDA_PROBES = 256, 2, 64
_SECONDS = 1.5


class Calibrated(Protocol):
    """A tokenizer, as far as the measurement needs it."""

    image_size: int
    num_tokens: int
    device: torch.device

    def calibrate(self, images: Tensor, sizes: Iterable[int], *, seconds: float) -> None:
        """See ``Tokenizer.calibrate``."""


def calibrate(tokenizer: Calibrated, largest_batch: int, *, threads: int | None = None) -> None:
    """Calibrates for batch sizes up to the largest, or as many as fit into 1.5 seconds. ``threads``: the PyTorch threads
    that batches will use; None: the current number.
    """
    powers = {1 << exponent for exponent in range(1, largest_batch.bit_length())}
    sizes = sorted({*powers, 3, largest_batch - 1, largest_batch} & set(range(2, largest_batch + 1)))
    # On a CPU, tokenizers with many tokens are the slowest, and need fewer images for the same number of decisions.
    on_cpu = tokenizer.device.type == "cpu"
    probes = max(_LEAST_PROBES, _CPU_DECISIONS // tokenizer.num_tokens) if on_cpu else _CUDA_PROBES
    with torch_threads(threads or torch.get_num_threads()):
        tokenizer.calibrate(probe_images(tokenizer.image_size, probes), sizes, seconds=_SECONDS)


def probe_images(side: int, count: int) -> Tensor:
    """Images of squares of random colors, always the same: uint8 [count, side, side, 3]."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, side // 8, side // 8, 3), np.uint8)
    return torch.from_numpy(coarse.repeat(8, axis=1).repeat(8, axis=2))
