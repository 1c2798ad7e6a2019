"""Splits a long list into requests within the service's limits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Batch(Generic[T]):
    """Consecutive items of a list; ``first`` is the position of the first one."""

    first: int
    items: list[T]

    @property
    def positions(self) -> range:
        """The items' positions in the list."""
        return range(self.first, self.first + len(self.items))


def batches(
    items: Iterable[T], *, max_items: int, max_bytes: int | None = None, size: Callable[[T], int] = lambda _: 0
) -> Iterator[Batch[T]]:
    """Splits items, in order, into the largest batches within the limits; an item that exceeds ``max_bytes`` is alone.

    Reads the iterable lazily, one item beyond the current batch.
    """
    batch: list[T] = []
    first = total = 0
    for item in items:
        length = size(item)
        if batch and (len(batch) == max_items or (max_bytes is not None and total + length > max_bytes)):
            yield Batch(first, batch)
            first, batch, total = first + len(batch), [], 0
        batch.append(item)
        total += length
    if batch:
        yield Batch(first, batch)
