"""Turns entries of a source into shards.

On a CPU each thread makes whole batches, so that no core waits for another::

    the caller's thread          a thread per core
    reads a few batches ahead ──> prepare, compute, finish ──> shards, in order

On a GPU the host's cores work on other batches while the device computes::

    a thread       threads     the caller's thread     threads
    read ahead ──> prepare ──> batches ──> device ───> finish ──> shards, in order

To prepare an entry is to decode its image, for example, and to finish it is to encode one (``Task`` in ``job.py``).
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from itertools import starmap
from typing import Any, NamedTuple, TypeVar

import torch

from service.bulk.batches import Batch, batches
from service.bulk.entries import Content, Entry, Position
from service.bulk.errors import BrokenImage
from service.bulk.job import Task
from service.bulk.shards import BrokenEntry, Row, Shard

T = TypeVar("T")
Progress = Callable[[int, int], object]
"""Called with the number of entries done since the last call, and how many of them are broken."""


class Rows(NamedTuple):
    """The rows of a batch, and its entries without one."""

    good: list[Row]
    broken: list[BrokenEntry]


Pipeline = Callable[[Iterator[Batch[Any]], Task[Any, Any, Any]], Generator[tuple[Batch[Any], Rows]]]
"""Makes the rows of batches on a kind of device, in order."""

_BATCHES_PER_CORE = 2  # the one being computed, and the next


def make_shards(
    entries: Iterable[tuple[Position, Entry[Content]]],
    task: Task[Any, Any, Content],
    *,
    first_shard: int = 0,
    progress: Progress | None = None,
    pipeline: Pipeline | None = None,
) -> Generator[Shard]:
    """The shards of the entries, numbered from ``first_shard``, as they become complete; none if there are no entries. The
    pipeline is that of the task's device unless it is given.

    Raises what the source raises, but nothing for a broken image: that is in its shard's ``broken``.
    """
    pipeline = pipeline or (cpu_pipeline if task.device.type == "cpu" else gpu_pipeline)
    with closing(pipeline(batches(entries, task.job, first_shard), task)) as made:
        for batch, rows in made:
            batch.shard.rows += rows.good
            batch.shard.broken += rows.broken
            if progress is not None:
                progress(len(batch.entries), len(rows.broken))
            if batch.is_last:
                yield batch.shard


def cpu_pipeline(source: Iterator[Batch[Any]], task: Task[Any, Any, Any]) -> Generator[tuple[Batch[Any], Rows]]:
    """Each thread makes whole batches."""

    def compute(batch: Batch[Any]) -> Rows:
        started = _start(task, batch, (_prepared(task, entry) for entry in batch.entries))
        return Rows([task.finish(entry, output) for entry, output in started.outputs()], started.broken)

    own_threads, threads = torch.get_num_threads(), task.job.threads
    pool = ThreadPoolExecutor(threads, "compute", initializer=torch.set_num_threads, initargs=(1,))
    try:
        running = ((batch, pool.submit(compute, batch)) for batch in source)
        for batch, future in _look_ahead(running, _BATCHES_PER_CORE * threads):
            yield batch, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(own_threads)  # what a thread sets applies to threads that start later


def gpu_pipeline(source: Iterator[Batch[Any]], task: Task[Any, Any, Any]) -> Generator[tuple[Batch[Any], Rows]]:
    """Threads prepare and finish entries while the device computes."""

    def prepare(batch: Batch[Any]) -> tuple[Batch[Any], list[Future[Any]]]:
        return batch, [pool.submit(_prepared, task, entry) for entry in batch.entries]

    def start(batch: Batch[Any], prepared: list[Future[Any]]) -> tuple[Batch[Any], "_Started"]:
        return batch, _start(task, batch, (future.result() for future in prepared))

    def finish(batch: Batch[Any], started: "_Started") -> tuple[Batch[Any], list[Future[Row]], list[BrokenEntry]]:
        rows = [pool.submit(task.finish, entry, output) for entry, output in started.outputs()]
        return batch, rows, started.broken

    threads = task.job.threads
    prepared_ahead = max(3, -(-2 * threads // task.job.batch_images))  # batches
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(threads, "prepare") as pool:
        try:
            prepared = _look_ahead(map(prepare, _read_ahead(source, reader)), prepared_ahead)
            computed = starmap(finish, _look_ahead(starmap(start, prepared), 1))
            for batch, rows, broken in _look_ahead(computed, 1):
                yield batch, Rows([row.result() for row in rows], broken)
        finally:
            pool.shutdown(cancel_futures=True)


class _Started(NamedTuple):
    """A batch on the device: ``outputs`` waits for the outputs, one per entry that is not broken."""

    outputs: Callable[[], Iterator[tuple[Entry[Any], Any]]]
    broken: list[BrokenEntry]


def _prepared(task: Task[T, Any, Content], entry: Entry[Content]) -> T | BrokenImage:
    try:
        return task.prepare(entry)
    except BrokenImage as error:
        return error


def _start(task: Task[T, Any, Content], batch: Batch[Content], prepared: Iterable[T | BrokenImage]) -> _Started:
    good, inputs, broken = list[Entry[Content]](), list[T](), list[BrokenEntry]()
    for entry, found in zip(batch.entries, prepared, strict=True):
        if isinstance(found, BrokenImage):
            broken.append(BrokenEntry(entry.key, str(found)))
        else:
            good.append(entry)
            inputs.append(found)
    pending = task.submit(inputs) if inputs else list
    return _Started(lambda: zip(good, pending(), strict=True), broken)


def _read_ahead(source: Iterator[Batch[Any]], reader: Executor) -> Iterator[Batch[Any]]:
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
