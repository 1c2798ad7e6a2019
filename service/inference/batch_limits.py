"""Finds the largest useful batch size by measurement, at start-up, on the machine that will run it.

::

    images/s  │          ·──x──x     two sizes in a row without a gain: no larger one is tried
              │       ·              longer than the budget, or out of memory: the size before is the largest
              │    ·
              │ ·
              └────────────────────  1  2  4  8  16  32

The result is the largest size within 3 % of the highest rate. Measurements scatter on a machine that is busy at start-up;
a batch that is too large costs some latency, within the budget, but one that is too small costs throughput permanently.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

LARGEST_BATCH = 1024

Run = Callable[[], object]

_GAIN = 1.03
_FLAT_SIZES = 2
_REPEAT_SECONDS = 0.2
_RUNS = 3
_LARGEST_ESTIMATE = 32


def batch_sizes(largest: int) -> Iterator[int]:
    """1, 2, 4 .. and ``largest`` itself."""
    size = 1
    while size < largest:
        yield size
        size *= 2
    yield largest


def find_batch_limit(
    run: Callable[[int], object],
    *,
    largest: int,
    seconds: float,
    trial_seconds: float,
    is_out_of_memory: Callable[[Exception], bool],
    measure: Callable[[Run], float],
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """The batch size, at most ``largest``, with most images per second among those that take at most ``seconds``.

    ``run(size)`` runs one batch, ``measure`` returns its duration. If a single image takes longer than the budget, the limit
    is 1. A size that would not finish within ``trial_seconds`` after the first one is not tried; the limit is then estimated
    from the highest rate, up to 32. Raises what ``run(1)`` raises, and errors of larger batches except out of memory.
    """
    rates: dict[int, float] = {}
    flat, estimate = 0, 1
    started: float | None = None  # after the first size, whose run includes the one-time costs of a device
    for size in batch_sizes(largest):
        try:
            elapsed = _fastest(partial(run, size), seconds if rates else 2 * seconds, measure)
        except Exception as error:
            if not rates or not is_out_of_memory(error):
                raise
            break
        if elapsed > seconds:
            break
        flat = 0 if size / elapsed > _GAIN * max(rates.values(), default=0.0) else flat + 1
        rates[size] = size / elapsed
        if flat == _FLAT_SIZES:
            break
        started = clock() if started is None else started
        if clock() - started + 2 * elapsed > trial_seconds:  # twice as large, twice as long
            within_budget = min(largest, _LARGEST_ESTIMATE, int(seconds * max(rates.values())))
            estimate = 1 << (max(within_budget, 1).bit_length() - 1)
            break
    best = max(rates.values(), default=0.0)
    return max(estimate, *(size for size, rate in rates.items() if rate * _GAIN >= best), 1)


def _fastest(run: Run, limit: float, measure: Callable[[Run], float]) -> float:
    """Seconds of the fastest of a few runs; stops after one that takes more than ``limit``."""
    fastest = spent = measure(run)
    for repeat in range(1, _RUNS):
        if fastest > limit or (repeat > 1 and spent > _REPEAT_SECONDS):
            break
        elapsed = measure(run)
        fastest, spent = min(fastest, elapsed), spent + elapsed
    return fastest
