"""One image of a data set, and where in the data set it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

__all__ = ["Entry", "Label", "LabelType", "Part", "Position", "Source"]

Label = int | str | None
LabelType = Literal["integer", "text"] | None
"""What the labels of a source are; None: it has none."""


class Position(NamedTuple):
    """So many entries of the part with this number come before."""

    part: int
    offset: int


@dataclass(frozen=True)
class Entry:
    """An image's ``key``, its ``label``, and how its file is read: ``read`` raises ``BrokenImage`` if that cannot be, and
    is called from another thread.
    """

    key: str
    label: Label
    read: Callable[[], bytes]


class Part(Protocol):
    """Entries in an order that is always the same, such as those of one tar file."""

    @property
    def name(self) -> str:
        """The part's file or folder."""

    def count(self) -> int:
        """How many entries there are."""

    def entries(self, start: int) -> Iterator[Entry]:
        """Those from number ``start`` on. Raises ``OSError`` where a part itself cannot be read."""


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes:
        name: its folder, file or URL, absolute.
        kind: folder, webdataset or parquet.
        parts: one after the other.
        classes: names of integer labels, if the source has them.
        labels: what its labels are.
        total: how many entries there are, if that is known without reading all of them.
        digest: another one whenever a file was added, taken away or changed.
    """

    name: str
    kind: str
    parts: tuple[Part, ...]
    classes: tuple[str, ...] | None
    labels: LabelType
    total: int | None
    digest: str

    def entries(self, start: Position) -> Iterator[tuple[Position, Entry]]:
        """All from a position on, each with the position behind it."""
        for number in range(start.part, len(self.parts)):
            first = start.offset if number == start.part else 0
            for offset, entry in enumerate(self.parts[number].entries(first), first + 1):
                yield Position(number, offset), entry
