"""Turns entries of a source into shards of tokens.

On a CPU each thread decodes, crops and encodes batches of its own, so that no core waits for another::

    the caller's thread          a thread per core
    reads a few batches ahead ──> decode, crop, encode ──> shards, in order

On a GPU the host's cores prepare batches while the device computes::

    a thread       threads             the caller's thread
    read ahead ──> decode, crop ──────> batches ──> device ──> shards, in order
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import islice

import torch

from models.tokenizer import Tokenizer
from service.bulk.batches import (
    BatchResult,
    Entries,
    PipelineOptions,
    Pixels,
    Progress,
    crops_of,
    encode_batch,
    fill_shards,
    look_ahead,
)
from service.bulk.entries import Entry, Position
from service.bulk.errors import BrokenImage
from service.bulk.shards import Shard

__all__ = ["tokenize_entries", "tokenize_on_cpu", "tokenize_on_gpu"]

_BATCHES_PER_CORE = 2  # the one being computed, and the next


def tokenize_entries(
    entries: Entries,
    tokenizer: Tokenizer,
    options: PipelineOptions,
    *,
    first_shard: int = 0,
    progress: Progress | None = None,
) -> Generator[Shard]:
    """The shards of the entries, numbered from ``first_shard``; none if there are no entries.

    Raises what the source raises, but nothing for a broken image: that is in its shard's ``broken``.
    """
    tokenize = tokenize_on_cpu if tokenizer.device.type == "cpu" else tokenize_on_gpu
    return tokenize(entries, tokenizer, options, first_shard=first_shard, progress=progress)


def tokenize_on_cpu(
    entries: Entries,
    tokenizer: Tokenizer,
    options: PipelineOptions,
    *,
    first_shard: int = 0,
    progress: Progress | None = None,
) -> Generator[Shard]:
    """See ``tokenize_entries``."""

    def compute(batch: list[Entry]) -> BatchResult:
        crops = (crops_of(entry, tokenizer.image_size, options) for entry in batch)
        return encode_batch(batch, crops, tokenizer, options)()

    own_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(options.threads, "tokenize", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from fill_shards(
            entries,
            lambda batch: pool.submit(compute, batch).result,
            options,
            first_shard=first_shard,
            batches_ahead=_BATCHES_PER_CORE * options.threads,
            progress=progress,
        )
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(own_threads)  # what a thread sets applies to threads that start later


def tokenize_on_gpu(
    entries: Entries,
    tokenizer: Tokenizer,
    options: PipelineOptions,
    *,
    first_shard: int = 0,
    progress: Progress | None = None,
) -> Generator[Shard]:
    """See ``tokenize_entries``."""

    def decode(item: tuple[Position, Entry]) -> tuple[Position, tuple[Entry, Future[Pixels | BrokenImage]]]:
        position, entry = item
        return position, (entry, decoders.submit(crops_of, entry, tokenizer.image_size, options))

    def start(batch: list[tuple[Entry, Future[Pixels | BrokenImage]]]) -> Callable[[], BatchResult]:
        entries = [entry for entry, _ in batch]
        return encode_batch(entries, (crops.result() for _, crops in batch), tokenizer, options)

    decoded_ahead = max(3 * options.batch_images, 2 * options.threads)
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(options.threads, "decode") as decoders:
        decoding = map(decode, _read_ahead(entries, reader, options.batch_images))
        try:
            yield from fill_shards(
                look_ahead(decoding, decoded_ahead),
                start,
                options,
                first_shard=first_shard,
                batches_ahead=1,
                progress=progress,
            )
        finally:
            decoders.shutdown(cancel_futures=True)


def _read_ahead(entries: Entries, reader: Executor, count: int) -> Iterator[tuple[Position, Entry]]:
    """The same entries, taken by ``reader`` in chunks of ``count``, one chunk ahead."""
    remaining = iter(entries)
    chunk = reader.submit(list, islice(remaining, count))
    while taken := chunk.result():
        chunk = reader.submit(list, islice(remaining, count))
        yield from taken
