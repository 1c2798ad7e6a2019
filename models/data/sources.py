"""What a place that holds photographs can say: how many, one after the other, or any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from models.data.bad_samples import BadSamples

__all__ = ["IndexedSource", "Sample", "Source", "Split"]

Split = Literal["train", "val"]


class Sample(NamedTuple):
    """One photograph: its ``name`` for the log, its class, and its file's bytes."""

    name: str
    label: int
    read: Callable[[], bytes]


class IndexedSource(Protocol):
    """Photographs at random access, from many threads at once: ``labels`` int64 [N], positions in ``names``."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of each row."""

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each class."""

    def name(self, row: int) -> str:
        """What the log calls a row."""

    def read(self, row: int) -> bytes:
        """The bytes of a row's file. Raises ``OSError``."""


class Source(Protocol):
    """One split, where people keep it."""

    @property
    def names(self) -> tuple[str, ...] | None:
        """The name of each class; None where only the photographs know how many there are."""

    def described(self) -> str:
        """Another text whenever a file is another one."""

    def count(self, enough: int, bad_samples: BadSamples) -> int:
        """How many photographs there are, or any number above ``enough`` if they are more than that."""

    def samples(self, bad_samples: BadSamples) -> Iterator[Sample]:
        """All samples in order; those without image or class go to ``bad_samples``. Raises no ``OSError``."""

    def members(self, cache: Path, bad_samples: BadSamples) -> IndexedSource:
        """All of them at random access. Raises ``DataError`` where the files do not allow it."""
