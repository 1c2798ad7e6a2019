"""Protocol of dataset sources, the images of a split with random access, and the record of unusable ones."""

import logging
from typing import Literal, Protocol

from models.arrays import Ids
from models.errors import DataError

log = logging.getLogger(__name__)

MAX_BAD_FRACTION = 0.01

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")


class BadSamples:
    """Shards and images that cannot be used, by name; too many of them stop the run."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, name: str, reason: object) -> None:
        """Logs a sample; only the first reason for a name counts."""
        if name not in self._reasons:
            self._reasons[name] = str(reason)
            log.warning("skipped %s: %s", name, reason)

    def check(self, total: int) -> None:
        """Raises ``DataError`` if more than 1 % of ``total`` samples are bad."""
        if len(self) > MAX_BAD_FRACTION * total:
            name, reason = next(iter(self._reasons.items()))
            raise DataError(f"{len(self)} of {total} samples cannot be used; first: {name}: {reason}")


class Source(Protocol):
    """The stored images of one split, with random access. Thread-safe."""

    @property
    def labels(self) -> Ids:
        """Indices into ``names``, int64 [N]."""

    @property
    def names(self) -> tuple[str, ...]:
        """The class names."""

    def fingerprint(self) -> str:
        """A text that changes whenever a file changes."""

    def name(self, row: int) -> str:
        """The name of an image, for the log."""

    def read(self, row: int) -> bytes:
        """The bytes of an image file. Raises ``OSError``."""
