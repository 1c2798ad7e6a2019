"""How large a batch is worth having: tried out at start-up, on the machine that will run it.

::

    images/s  │          ·──x──x     two sizes in a row that gain nothing: no larger one is tried
              │       ·              a batch longer than the budget, or out of memory: the size before is the largest
              │    ·
              │ ·
              └────────────────────  1  2  4  8  16  32

Of the sizes tried, the largest that is as fast as the fastest counts: on a machine that does other things at start-up
measurements scatter, and too large a batch costs some latency, within the budget, too small a one throughput for good.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

__all__ = ["LARGEST_BATCH", "batch_sizes", "find_batch_limit"]

LARGEST_BATCH = 1024

Run = Callable[[], object]

_GAIN = 1.03
_FLAT_SIZES = 2
_REPEAT_SECONDS = 0.2
_RUNS = 3
_BELIEVED = 32


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
    """The batch size, at most ``largest``, that does most images a second within the budget of ``seconds`` a batch.

    ``run(size)`` runs one batch, ``measure`` says how many seconds that took. A single image may take longer than the
    budget: then the limit is 1. A size that would not be done within ``trial_seconds`` after the first one is not tried,
    and what the fastest size promises is believed. Raises what ``run(1)`` raises, and of larger batches anything but
    being out of memory.
    """
    rates: dict[int, float] = {}
    flat, promised = 0, 1
    begun: float | None = None  # what happens once on a device happens to the first size, and is not counted
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
        begun = clock() if begun is None else begun
        if clock() - begun + 2 * elapsed > trial_seconds:  # twice as large, twice as long
            within_budget = min(largest, _BELIEVED, int(seconds * max(rates.values())))
            promised = 1 << (max(within_budget, 1).bit_length() - 1)
            break
    best = max(rates.values(), default=0.0)
    return max(promised, *(size for size, rate in rates.items() if rate * _GAIN >= best), 1)


def _fastest(run: Run, patience: float, measure: Callable[[Run], float]) -> float:
    """Seconds of the fastest of a few runs, or of the first one that takes more than ``patience``."""
    fastest = spent = measure(run)
    for repeat in range(1, _RUNS):
        if fastest > patience or (repeat > 1 and spent > _REPEAT_SECONDS):
            break
        elapsed = measure(run)
        fastest, spent = min(fastest, elapsed), spent + elapsed
    return fastest
