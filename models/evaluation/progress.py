"""Progress reporting of long computations."""

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Track(Protocol):
    """Iterates over ``items`` and shows the progress under ``description``, as ``rich.progress.track`` does."""

    def __call__(self, items: Sequence[T], description: str) -> Iterable[T]:
        """Yields the items."""


def no_progress(items: Sequence[T], description: str) -> Iterable[T]:  # noqa: ARG001
    """Iterates without showing progress."""
    return items
