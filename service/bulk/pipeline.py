"""Entries of a source in, shards of tokens out, with the device kept busy.

::

    a thread          threads                 the caller's thread
    read ahead ─────> decode, crop ─────────> batches ──> device ──> shards, in order
             bounded             bounded               a batch ahead

On a GPU images are decoded while it computes. A CPU that runs the network has no cores to spare: there a batch is decoded
by all threads, then encoded by all threads, since threads that wait for each other at every operator must not be
interrupted. Batches end where shards end, so that a shard's bytes do not depend on where a run began.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch

from models.tokenizer import Pending, Tokenizer
from service.bulk.entries import Entry, Position
from service.bulk.errors import BrokenImage
from service.bulk.shards import Broken, Row, Shard
from service.bulk.views import Views
from service.media import MediaLimits, decode_image
from service.problems import Problem

__all__ = ["Work", "tokenize_entries"]

Pixels = npt.NDArray[np.uint8]
Entries = Iterable[tuple[Position, Entry]]
Progress = Callable[[int, int], object]
"""Called with the entries that are done since the last call, and how many of these are broken."""


@dataclass(frozen=True)
class Work:
    """What is to be done to each entry, and how.

    Attributes:
        views: the squares of an image.
        shard_images: entries a shard.
        batch_size: squares a batch, at most; at least one image goes into each.
        threads: that decode.
        max_pixels: of one image, by its header.
    """

    views: Views
    shard_images: int
    batch_size: int
    threads: int
    max_pixels: int

    @property
    def batch_images(self) -> int:
        """Images a batch."""
        return max(1, self.batch_size // self.views.count)

    @property
    def images_ahead(self) -> int:
        """Images read, and decoded, before a device that computes by itself asks for them."""
        return max(3 * self.batch_images, 2 * self.threads)


@dataclass(frozen=True)
class _Decoding:
    """An entry on its way: its squares uint8 [views, S, S, 3], or what is wrong with it."""

    position: Position
    entry: Entry
    group: Future[list[Pixels | BrokenImage]]
    place: int

    def result(self) -> Pixels | BrokenImage:
        """Waits for it, and for those that the same thread decodes with it."""
        return self.group.result()[self.place]


@dataclass(frozen=True)
class _Running:
    """A batch on the device, the entries in it, and the shard they are for; ``last`` if the shard ends with it."""

    shard: Shard
    entries: list[Entry]
    ids: Pending | None
    last: bool


def tokenize_entries(
    entries: Entries, tokenizer: Tokenizer, work: Work, *, first_shard: int = 0, progress: Progress | None = None
) -> Iterator[Shard]:
    """The shards that entries make, numbered from ``first_shard``; none if there are no entries.

    Raises what the source raises, and nothing for a broken image: that is in its shard's ``broken``.
    """
    overlaps = tokenizer.device.type != "cpu"
    running: deque[_Running] = deque()
    with _read_ahead(entries, work.images_ahead) as read, ThreadPoolExecutor(work.threads) as pool:
        decodings = _decode_ahead(read, pool, tokenizer.image_size, work, overlaps=overlaps)
        try:
            for batch in _batches(decodings, work, first_shard):
                running.append(_start(*batch, tokenizer, work, progress))
                if len(running) > overlaps:
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
    read: Iterator[tuple[Position, Entry]], pool: ThreadPoolExecutor, size: int, work: Work, *, overlaps: bool
) -> Generator[_Decoding]:
    """The entries in order, being decoded; several batches ahead, or, on a CPU, not beyond the batch that is next."""
    waiting: deque[_Decoding] = deque()
    left = work.shard_images  # a batch ends where its shard does
    exhausted = False
    try:
        while True:
            most = work.images_ahead if overlaps else min(work.batch_images, left)
            room = most - len(waiting) if overlaps or not waiting else 0
            # Threads are woken once for all that they are to do, where that does not keep the first image back.
            share = 1 if overlaps else max(1, -(-room // work.threads))
            while room > 0 and not exhausted:
                group = list(islice(read, min(share, room)))
                exhausted = len(group) < min(share, room)
                room -= len(group)
                decoded = pool.submit(_squares_of, [entry for _, entry in group], size, work)
                waiting += [_Decoding(*item, decoded, place) for place, item in enumerate(group)]
            if not waiting:
                return
            left = left - 1 or work.shard_images
            yield waiting.popleft()
    finally:
        for decoding in waiting:
            decoding.group.cancel()


def _squares_of(entries: Sequence[Entry], size: int, work: Work) -> list[Pixels | BrokenImage]:
    return [_squares(entry, size, work) for entry in entries]


def _squares(entry: Entry, size: int, work: Work) -> Pixels | BrokenImage:
    try:
        decoded = decode_image(entry.read(), limits=MediaLimits(max_pixels=work.max_pixels))
        return work.views.of(decoded.image, size)
    except BrokenImage as error:
        return error
    except (Problem, ValueError) as error:
        return BrokenImage(str(error))


def _batches(
    decodings: Iterator[_Decoding], work: Work, first_shard: int
) -> Iterator[tuple[Shard, list[_Decoding], bool]]:
    """Lists of entries for one shard each, and whether the shard is whole with them."""
    shard = Shard(first_shard, Position(0, 0))
    batch: list[_Decoding] = []
    count = 0
    for decoding in decodings:
        shard.end = decoding.position
        batch.append(decoding)
        count += 1
        whole = count == work.shard_images
        if whole or len(batch) == work.batch_images:
            yield shard, batch, whole
            batch = []
        if whole:
            shard, count = Shard(shard.number + 1, shard.end), 0
    if count:
        yield shard, batch, True


def _start(
    shard: Shard, batch: list[_Decoding], last: bool, tokenizer: Tokenizer, work: Work, progress: Progress | None
) -> _Running:
    good: list[Entry] = []
    size = tokenizer.image_size
    shape = (len(batch) * work.views.count, size, size, 3)
    images = torch.empty(shape, dtype=torch.uint8, pin_memory=tokenizer.device.type == "cuda")
    rows = images.numpy().reshape(len(batch), work.views.count, size, size, 3)
    for decoding in batch:
        squares = decoding.result()
        if isinstance(squares, BrokenImage):
            shard.broken.append(Broken(decoding.entry.key, str(squares)))
        else:
            rows[len(good)] = squares
            good.append(decoding.entry)
    if progress is not None:
        progress(len(batch), len(batch) - len(good))
    ids = tokenizer.submit_encode(images[: len(good) * work.views.count]) if good else None
    return _Running(shard, good, ids, last)


def _finish(batch: _Running) -> Iterator[Shard]:
    """Waits for a batch; gives the shard if that was all of it."""
    if batch.ids is not None:
        ids = batch.ids().numpy().astype(np.uint16)
        tokens = ids.reshape(len(batch.entries), -1, ids.shape[-1])
        for entry, rows in zip(batch.entries, tokens, strict=True):
            batch.shard.rows.append(Row(entry.key, entry.label, rows))
    if batch.last:
        yield batch.shard
