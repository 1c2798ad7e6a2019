"""A device of its own that tokenizes a data set, kept busy by the cores of the host.

::

    a thread          threads                 the caller's thread
    read ahead ─────> decode, crop ─────────> batches ──> device ──> shards, in order
             bounded             bounded               a batch ahead
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice

import torch

from models.tokenizer import Pending, Tokenizer
from service.bulk.entries import Entry, Position
from service.bulk.errors import BrokenImage
from service.bulk.shards import Broken, Shard
from service.bulk.work import Entries, Pixels, Progress, Work, batches, rows_of, squares_of

__all__ = ["tokenize_on_device"]


@dataclass(frozen=True)
class _Decoding:
    """An entry on its way: its squares uint8 [views, S, S, 3], or what is wrong with it."""

    entry: Entry
    squares: Future[Pixels | BrokenImage]


@dataclass(frozen=True)
class _Running:
    """A batch on the device, the entries in it, and the shard they are for; ``last`` if the shard ends with it."""

    shard: Shard
    entries: list[Entry]
    ids: Pending | None
    last: bool


def tokenize_on_device(
    entries: Entries, tokenizer: Tokenizer, work: Work, *, first_shard: int = 0, progress: Progress | None = None
) -> Generator[Shard]:
    """See ``service.bulk.pipeline.tokenize_entries``."""
    running: deque[_Running] = deque()
    ahead = max(3 * work.batch_images, 2 * work.threads)
    with _read_ahead(entries, ahead) as read, ThreadPoolExecutor(work.threads, "decode") as pool:
        decodings = _decode_ahead(read, pool, tokenizer.image_size, work, ahead)
        try:
            for batch in batches(decodings, work, first_shard):
                running.append(_start(*batch, tokenizer, work, progress))
                if len(running) > 1:
                    yield from _finish(running.popleft())
            while running:
                yield from _finish(running.popleft())
        finally:
            decodings.close()


@contextmanager
def _read_ahead(entries: Entries, most: int) -> Iterator[Iterator[tuple[Position, Entry]]]:
    """The same entries, found by a thread that is up to ``most`` ahead; it ends with the context."""
    found: queue.Queue[tuple[Position, Entry] | BaseException | None] = queue.Queue(most)
    ended = threading.Event()

    def put(item: tuple[Position, Entry] | BaseException | None) -> None:
        while not ended.is_set():
            with suppress(queue.Full):
                found.put(item, timeout=0.1)
                return

    def read() -> None:
        try:
            for item in entries:
                put(item)
                if ended.is_set():
                    return
            put(None)
        except BaseException as error:  # raised again where the entries are wanted
            put(error)

    def items() -> Iterator[tuple[Position, Entry]]:
        while (item := found.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    thread = threading.Thread(target=read, name="read", daemon=True)
    thread.start()
    try:
        yield items()
    finally:
        ended.set()
        thread.join()


def _decode_ahead(
    read: Iterator[tuple[Position, Entry]], pool: ThreadPoolExecutor, size: int, work: Work, most: int
) -> Generator[tuple[Position, _Decoding]]:
    """The entries in order, up to ``most`` of them being decoded."""
    waiting: deque[tuple[Position, _Decoding]] = deque()
    try:
        while True:
            for position, entry in islice(read, most - len(waiting)):
                waiting.append((position, _Decoding(entry, pool.submit(squares_of, entry, size, work))))
            if not waiting:
                return
            yield waiting.popleft()
    finally:
        for _, decoding in waiting:
            decoding.squares.cancel()


def _start(
    shard: Shard, batch: list[_Decoding], last: bool, tokenizer: Tokenizer, work: Work, progress: Progress | None
) -> _Running:
    good: list[Entry] = []
    size = tokenizer.image_size
    shape = (len(batch) * work.views.count, size, size, 3)
    images = torch.empty(shape, dtype=torch.uint8, pin_memory=tokenizer.device.type == "cuda")
    rows = images.numpy().reshape(len(batch), work.views.count, size, size, 3)
    for decoding in batch:
        squares = decoding.squares.result()
        if isinstance(squares, BrokenImage):
            shard.broken.append(Broken(decoding.entry.key, str(squares)))
        else:
            rows[len(good)] = squares
            good.append(decoding.entry)
    if progress is not None:
        progress(len(batch), len(batch) - len(good))
    ids = tokenizer.submit_encode(images[: len(good) * work.views.count]) if good else None
    return _Running(shard, good, ids, last)


def _finish(batch: _Running) -> Generator[Shard]:
    """Waits for a batch; gives the shard if that was all of it."""
    if batch.ids is not None:
        batch.shard.rows += rows_of(batch.entries, batch.ids())
    if batch.last:
        yield batch.shard
