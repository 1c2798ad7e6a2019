"""How close a decision must be for the rounding of a batch to make it, measured on the device that will run it.

A matrix product of another size may add in another order, so an image's numbers move by a few units in the last place with
the company it is computed in. A decision (the nearest of the codes, the likeliest of the tokens) has a margin: how far it
was from going the other way. Where that is less than what margins move by, the image is computed again alone, and that
counts. Too small a tolerance lets company decide; too large a one costs time: an image that is computed twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["MeasuredTolerance", "measure_tolerance"]

_SAFETY = 8.0


@dataclass(frozen=True)
class MeasuredTolerance:
    """What is safe in batches of up to ``size``."""

    tolerance: float
    size: int


def measure_tolerance(
    margins: Callable[[Sequence[int]], Tensor],
    *,
    alone: Callable[[int], Tensor],
    count: int,
    sizes: Iterable[int],
    least: float,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> MeasuredTolerance | None:
    """What is safe for ``count`` items: several times the most that their margins move between alone and in batches of
    ``sizes``, the smallest first, and at least ``least``. After ``seconds`` no further size is measured; None if there was
    no time for any.

    ``margins(items)`` computes those of a batch of items, [len(items), ...]; ``alone(item)`` those of one, [1, ...].
    """
    begun = clock()
    expected: list[Tensor] = []
    for item in range(count):
        expected.append(alone(item))
        if clock() - begun > seconds:
            return None
    references, moved, measured = torch.cat(expected), 0.0, None
    for size in sorted(sizes):
        for first in range(0, count, size):
            items = [(first + place) % count for place in range(size)]
            # What is infinite alone and in company has no other way to go.
            difference = torch.nan_to_num((margins(items) - references[items]).abs(), nan=0.0)
            moved = max(moved, float(difference.max()))
            if clock() - begun > seconds:
                return measured
        measured = MeasuredTolerance(max(least, _SAFETY * moved), size)
    return measured
