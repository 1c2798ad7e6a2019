"""Protocols of dataset sources: count, iterate, or index the images of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from models.arrays import Ids
from models.data.bad_samples import BadSamples

Split = Literal["train", "val"]


class Sample(NamedTuple):
    """One image: ``name`` for the log, ``label``, and ``read``, which returns the file's bytes."""

    name: str
    label: int
    read: Callable[[], bytes]


class IndexedSource(Protocol):
    """Images with random access, thread-safe."""

    @property
    def labels(self) -> Ids:
        """Indices into ``names``, int64 [N]."""

    @property
    def names(self) -> tuple[str, ...]:
        """The class names."""

    def name(self, row: int) -> str:
        """The name of an image, for the log."""

    def read(self, row: int) -> bytes:
        """The bytes of an image file. Raises ``OSError``."""


class Source(Protocol):
    """The stored images of one split."""

    @property
    def names(self) -> tuple[str, ...] | None:
        """The class names; None if only the samples tell how many classes there are."""

    def fingerprint(self) -> str:
        """A text that changes whenever a file changes."""

    def count(self, limit: int, bad_samples: BadSamples) -> int:
        """The number of images, or any number above ``limit`` if there are more."""

    def samples(self, bad_samples: BadSamples) -> Iterator[Sample]:
        """All samples in order; those without image or class go to ``bad_samples``. Raises no ``OSError``."""

    def index(self, cache: Path, bad_samples: BadSamples) -> IndexedSource:
        """The images with random access. Raises ``DataError`` if the files do not allow it."""
