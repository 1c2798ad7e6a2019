"""Protocols of dataset sources: the images of a split, with random access."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

from models.arrays import Ids
from models.data.bad_samples import BadSamples

Split = Literal["train", "val"]


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
        """The class names; None if only the labels tell how many classes there are."""

    def fingerprint(self) -> str:
        """A text that changes whenever a file changes."""

    def index(self, cache: Path, bad_samples: BadSamples) -> IndexedSource:
        """The images; files without image or class go to ``bad_samples``. Raises ``DataError`` if these are too many."""


def names_of(names: tuple[str, ...] | None, labels: Ids) -> tuple[str, ...]:
    """The class names, or without any the class numbers of ``labels``."""
    return tuple(map(str, range(int(labels.max()) + 1))) if names is None else names
