"""A CPU that tokenizes a data set: each core decodes, crops and encodes batches of its own.

::

    the caller's thread                     a thread a core
    reads a few batches ahead ────────────> decode, crop, encode ────────────> shards, in order
                                  bounded

No core waits for another until the source is at its end. Were a batch decoded by all of them, then encoded by all of them,
each would wait twice a batch for the slowest, and once more for whatever wakes it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from models.tokenizer import Tokenizer
from service.bulk.entries import Entry
from service.bulk.errors import BrokenImage
from service.bulk.shards import Broken, Row, Shard
from service.bulk.work import Entries, Pixels, Progress, Work, batches, rows_of, squares_of

__all__ = ["tokenize_on_cores"]

# Of each core: the one it works on, and the one it goes on with.
_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class _Made:
    """What has become of a batch."""

    rows: list[Row]
    broken: list[Broken]


@dataclass(frozen=True)
class _Running:
    """A batch in the making, and the shard it is for; ``last`` if the shard ends with it."""

    shard: Shard
    made: Future[_Made]
    last: bool


def tokenize_on_cores(
    entries: Entries, tokenizer: Tokenizer, work: Work, *, first_shard: int = 0, progress: Progress | None = None
) -> Generator[Shard]:
    """See ``service.bulk.pipeline.tokenize_entries``."""
    own_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(work.threads, "tokenize", initializer=torch.set_num_threads, initargs=(1,))
    running: deque[_Running] = deque()
    try:
        for shard, batch, last in batches(entries, work, first_shard):
            running.append(_Running(shard, pool.submit(_make, batch, tokenizer, work), last))
            if len(running) > _BATCHES_AHEAD * work.threads:
                yield from _finish(running.popleft(), progress)
        while running:
            yield from _finish(running.popleft(), progress)
    finally:
        pool.shutdown(cancel_futures=True)
        # PyTorch would give what the last caller said to threads that are yet to begin.
        torch.set_num_threads(own_threads)


def _make(batch: list[Entry], tokenizer: Tokenizer, work: Work) -> _Made:
    good: list[Entry] = []
    squares: list[Pixels] = []
    broken: list[Broken] = []
    for entry in batch:
        found = squares_of(entry, tokenizer.image_size, work)
        if isinstance(found, BrokenImage):
            broken.append(Broken(entry.key, str(found)))
        else:
            good.append(entry)
            squares.append(found)
    return _Made(rows_of(good, tokenizer.encode(np.concatenate(squares))) if good else [], broken)


def _finish(batch: _Running, progress: Progress | None) -> Generator[Shard]:
    """Waits for a batch; gives the shard if that was all of it."""
    made = batch.made.result()
    batch.shard.rows += made.rows
    batch.shard.broken += made.broken
    if progress is not None:
        progress(len(made.rows) + len(made.broken), len(made.broken))
    if batch.last:
        yield batch.shard
