"""Random numbers of training as a function of (seed, step), so that no random state needs saving."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray


def seeded_generator(*numbers: int) -> torch.Generator:
    """A random generator that depends on all of ``numbers``."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number) % 2**63
    return torch.Generator().manual_seed(seed)


def batch_rows(count: int, batch_size: int, step: int, seed: int) -> NDArray[np.int64]:
    """Rows int64 [B] of the batch of ``step``, out of ``count`` samples that are shuffled anew for every epoch.

    The incomplete batch at the end of an epoch is dropped.
    """
    batch_size = min(batch_size, count)
    epoch, batch = divmod(step, count // batch_size)
    return _epoch(count, seed, epoch)[batch * batch_size : (batch + 1) * batch_size]


@lru_cache(maxsize=2)
def _epoch(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return torch.randperm(count, generator=seeded_generator(seed, -1, epoch)).numpy()
