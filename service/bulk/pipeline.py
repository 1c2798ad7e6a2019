"""Turns entries of a source into shards of tokens.

On a CPU each thread decodes, crops and encodes batches of its own, so that no core waits for another::

    the caller's thread          a thread per core
    reads a few batches ahead ──> decode, crop, encode ──> shards, in order

On a GPU the host's cores prepare batches while the device computes::

    a thread       threads             the caller's thread
    read ahead ──> decode, crop ──────> batches ──> device ──> shards, in order
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from itertools import starmap
from typing import TypeVar

import torch

from models.tokenizer import Tokenizer
from service.bulk.batches import Batch, Pixels, Rows, batches, crops_of, encode_batch
from service.bulk.entries import Entry, Position
from service.bulk.errors import BrokenImage
from service.bulk.job import Job
from service.bulk.shards import Shard

T = TypeVar("T")
Progress = Callable[[int, int], object]
"""Called with the number of entries done since the last call, and how many of them are broken."""

Pipeline = Callable[[Iterator[Batch], Tokenizer, Job], Generator[tuple[Batch, Rows]]]
"""Tokenizes batches on a kind of device, in order."""

_BATCHES_PER_CORE = 2  # the one being computed, and the next


def tokenize_entries(
    entries: Iterable[tuple[Position, Entry]],
    tokenizer: Tokenizer,
    job: Job,
    *,
    first_shard: int = 0,
    progress: Progress | None = None,
    pipeline: Pipeline | None = None,
) -> Generator[Shard]:
    """The shards of the entries, numbered from ``first_shard``, as they become complete; none if there are no entries. The
    pipeline is that of the tokenizer's device unless it is given.

    Raises what the source raises, but nothing for a broken image: that is in its shard's ``broken``.
    """
    pipeline = pipeline or (cpu_pipeline if tokenizer.device.type == "cpu" else gpu_pipeline)
    with closing(pipeline(batches(entries, job, first_shard), tokenizer, job)) as tokenized:
        for batch, (rows, broken) in tokenized:
            batch.shard.rows += rows
            batch.shard.broken += broken
            if progress is not None:
                progress(len(batch.entries), len(broken))
            if batch.is_last:
                yield batch.shard


def cpu_pipeline(source: Iterator[Batch], tokenizer: Tokenizer, job: Job) -> Generator[tuple[Batch, Rows]]:
    """Each thread makes whole batches."""

    def compute(batch: Batch) -> Rows:
        crops = (crops_of(entry, tokenizer.image_size, job) for entry in batch.entries)
        return encode_batch(batch.entries, crops, tokenizer, job)()

    own_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(job.threads, "tokenize", initializer=torch.set_num_threads, initargs=(1,))
    try:
        running = ((batch, pool.submit(compute, batch)) for batch in source)
        for batch, future in _look_ahead(running, _BATCHES_PER_CORE * job.threads):
            yield batch, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(own_threads)  # what a thread sets applies to threads that start later


def gpu_pipeline(source: Iterator[Batch], tokenizer: Tokenizer, job: Job) -> Generator[tuple[Batch, Rows]]:
    """Threads read and decode ahead of the device."""

    def decode(batch: Batch) -> tuple[Batch, list[Future[Pixels | BrokenImage]]]:
        return batch, [decoders.submit(crops_of, entry, tokenizer.image_size, job) for entry in batch.entries]

    def start(batch: Batch, crops: list[Future[Pixels | BrokenImage]]) -> tuple[Batch, Callable[[], Rows]]:
        return batch, encode_batch(batch.entries, (future.result() for future in crops), tokenizer, job)

    decoded_ahead = max(3, -(-2 * job.threads // job.batch_images))  # batches
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(job.threads, "decode") as decoders:
        try:
            decoded = _look_ahead(map(decode, _read_ahead(source, reader)), decoded_ahead)
            for batch, wait in _look_ahead(starmap(start, decoded), 1):
                yield batch, wait()
        finally:
            decoders.shutdown(cancel_futures=True)


def _read_ahead(source: Iterator[Batch], reader: Executor) -> Iterator[Batch]:
    """The same batches, taken by ``reader``, one ahead."""
    following = reader.submit(next, source, None)
    while (batch := following.result()) is not None:
        following = reader.submit(next, source, None)
        yield batch


def _look_ahead(items: Iterable[T], count: int) -> Iterator[T]:
    """The same items; each is taken from ``items`` before the one ``count`` places earlier is yielded."""
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting
