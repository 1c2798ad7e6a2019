"""Margin below which batch rounding can change a token id, measured on the device.

A matrix product of another size may sum in another order, so the results for an image change by a few units in the last
place with the batch size. A decision (the nearest code, the likeliest token) has a margin: its distance from the
alternative. If the margin is below the measured tolerance, the image is computed again unbatched, and that result counts.
Too small a tolerance breaks batch invariance; too large a one wastes time on images that are computed twice.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_SAFETY_FACTOR = 8.0


@dataclass(frozen=True)
class MeasuredTolerance:
    """A tolerance that holds for batches of up to ``size`` items."""

    tolerance: float
    size: int


def measure_tolerance(
    margins: Callable[[Sequence[int]], Tensor],
    *,
    unbatched: Callable[[int], Tensor],
    count: int,
    sizes: Iterable[int],
    minimum: float,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> MeasuredTolerance | None:
    """Eight times the largest difference between batched and unbatched margins of ``count`` items, at least ``minimum``.

    ``margins(items)`` computes the margins of a batch, [len(items), ...]; ``unbatched(item)`` those of one item,
    [1, ...]. Batch ``sizes`` are measured in ascending order until ``seconds`` have passed; None if no size was finished.
    """
    deadline = clock() + seconds
    expected: list[Tensor] = []
    for item in range(count):
        expected.append(unbatched(item))
        if clock() > deadline:
            return None
    reference, largest, measured = torch.cat(expected), 0.0, None
    for size in sorted(sizes):
        for first in range(0, count, size):
            items = [(first + place) % count for place in range(size)]
            # Infinite margins (no alternative) differ by NaN.
            difference = torch.nan_to_num((margins(items) - reference[items]).abs(), nan=0.0)
            largest = max(largest, float(difference.max()))
            if clock() > deadline:
                return measured
        measured = MeasuredTolerance(max(minimum, _SAFETY_FACTOR * largest), size)
    return measured
