"""Random numbers of training as a function of (seed, step), so that no random state needs saving."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from models.errors import DataError
from models.training.config import ScheduleConfig


def seeded_generator(*numbers: int) -> torch.Generator:
    """A random generator that depends on all of ``numbers``."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number) % 2**63
    return torch.Generator().manual_seed(seed)


def check_count(count: int, schedule: ScheduleConfig) -> None:
    """Raises ``DataError`` if the training set has fewer than a batch."""
    if count < schedule.batch_size:
        raise DataError(
            f"there are {count} training images, fewer than the {schedule.batch_size} of a batch: add images, or set "
            f"schedule.batch_size"
        )


def batch_rows(count: int, schedule: ScheduleConfig, step: int, part: int = 0) -> NDArray[np.int64]:
    """Rows int64 [B] of a part of the batch of ``step``, out of ``count`` samples that are shuffled anew for every epoch.

    The incomplete batch at the end of an epoch is dropped.
    """
    epoch, batch = divmod(step, count // schedule.batch_size)
    share = schedule.batch_size // schedule.micro_batches
    first = batch * schedule.batch_size + part * share
    return _epoch(count, schedule.seed, epoch)[first : first + share]


@lru_cache(maxsize=2)
def _epoch(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return torch.randperm(count, generator=seeded_generator(seed, -1, epoch)).numpy()
