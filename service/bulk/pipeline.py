"""Turns entries of a source into shards of tokens.

On a CPU each thread decodes, crops and encodes batches of its own, so that no core waits for another::

    the caller's thread          a thread per core
    reads a few batches ahead ──> decode, crop, encode ──> shards, in order

On a GPU the host's cores prepare batches while the device computes::

    a thread       threads             the caller's thread
    read ahead ──> decode, crop ──────> batches ──> device ──> shards, in order
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import torch

from models.tokenizer import Tokenizer
from service.bulk.batches import BatchResult, PipelineOptions, Pixels, batches, crops_of, encode_batch
from service.bulk.entries import Entry, Position
from service.bulk.errors import BrokenImage
from service.bulk.shards import Shard

T = TypeVar("T")
Entries = Iterable[tuple[Position, Entry]]
Progress = Callable[[int, int], object]
"""Called with the number of entries done since the last call, and how many of them are broken."""
Decoding = tuple[Entry, Future[Pixels | BrokenImage]]

_BATCHES_PER_CORE = 2  # the one being computed, and the next


@dataclass(frozen=True)
class Pipeline(Generic[T]):
    """How a kind of device makes batches.

    Attributes:
        items: what a batch is made of, with the position after each.
        start: starts a batch; the result waits for its tokens.
        batches_ahead: batches that are started before the oldest is waited for.
    """

    items: Iterable[tuple[Position, T]]
    start: Callable[[list[T]], Callable[[], BatchResult]]
    batches_ahead: int


OpenPipeline = Callable[[Entries, Tokenizer, PipelineOptions], AbstractContextManager[Pipeline[Any]]]


def tokenize_entries(
    entries: Entries,
    tokenizer: Tokenizer,
    options: PipelineOptions,
    *,
    first_shard: int = 0,
    progress: Progress | None = None,
    open_pipeline: OpenPipeline | None = None,
) -> Generator[Shard]:
    """The shards of the entries, numbered from ``first_shard``, as they become complete; none if there are no entries. The
    pipeline is that of the tokenizer's device unless ``open_pipeline`` names another.

    Raises what the source raises, but nothing for a broken image: that is in its shard's ``broken``.
    """
    open_pipeline = open_pipeline or (cpu_pipeline if tokenizer.device.type == "cpu" else gpu_pipeline)
    with open_pipeline(entries, tokenizer, options) as pipeline:
        split = batches(pipeline.items, options, first_shard)
        started = ((shard, pipeline.start(batch), is_last) for shard, batch, is_last in split)
        for shard, wait, is_last in _look_ahead(started, pipeline.batches_ahead):
            result = wait()
            shard.rows += result.rows
            shard.broken += result.broken
            if progress is not None:
                progress(len(result.rows) + len(result.broken), len(result.broken))
            if is_last:
                yield shard


@contextmanager
def cpu_pipeline(entries: Entries, tokenizer: Tokenizer, options: PipelineOptions) -> Iterator[Pipeline[Entry]]:
    """Each thread makes whole batches."""

    def compute(batch: list[Entry]) -> BatchResult:
        crops = (crops_of(entry, tokenizer.image_size, options) for entry in batch)
        return encode_batch(batch, crops, tokenizer, options)()

    own_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(options.threads, "tokenize", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield Pipeline(entries, lambda batch: pool.submit(compute, batch).result, _BATCHES_PER_CORE * options.threads)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(own_threads)  # what a thread sets applies to threads that start later


@contextmanager
def gpu_pipeline(entries: Entries, tokenizer: Tokenizer, options: PipelineOptions) -> Iterator[Pipeline[Decoding]]:
    """Threads read and decode ahead of the device."""

    def decode(item: tuple[Position, Entry]) -> tuple[Position, Decoding]:
        position, entry = item
        return position, (entry, decoders.submit(crops_of, entry, tokenizer.image_size, options))

    def start(batch: list[Decoding]) -> Callable[[], BatchResult]:
        crops = (crops.result() for _, crops in batch)
        return encode_batch([entry for entry, _ in batch], crops, tokenizer, options)

    decoded_ahead = max(3 * options.batch_images, 2 * options.threads)
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(options.threads, "decode") as decoders:
        decoding = map(decode, _read_ahead(entries, reader, options.batch_images))
        try:
            yield Pipeline(_look_ahead(decoding, decoded_ahead), start, 1)
        finally:
            decoders.shutdown(cancel_futures=True)


def _read_ahead(entries: Entries, reader: Executor, count: int) -> Iterator[tuple[Position, Entry]]:
    """The same entries, taken by ``reader`` in chunks of ``count``, one chunk ahead."""
    remaining = iter(entries)
    chunk = reader.submit(list, islice(remaining, count))
    while taken := chunk.result():
        chunk = reader.submit(list, islice(remaining, count))
        yield from taken


def _look_ahead(items: Iterable[T], count: int) -> Iterator[T]:
    """The same items; each is taken from ``items`` before the one ``count`` places earlier is yielded."""
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting
