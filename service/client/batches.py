"""Long lists in as many requests as the service's limits ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Batch", "batches"]

T = TypeVar("T")


@dataclass(frozen=True)
class Batch(Generic[T]):
    """Consecutive items of a list; ``first`` is the place of the first one."""

    first: int
    items: list[T]

    @property
    def places(self) -> range:
        """The items' places in the list."""
        return range(self.first, self.first + len(self.items))


def batches(
    items: Iterable[T], *, max_items: int, max_bytes: int | None = None, size: Callable[[T], int] = lambda _: 0
) -> Iterator[Batch[T]]:
    """The items in order, as many together as fit. One that is too large by itself comes alone: the service shall say so.

    Items are taken from the iterable as they are needed, one more than the batch holds.
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
