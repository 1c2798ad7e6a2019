"""A dataset as a source of entries with keys and labels, at positions from which reading can resume."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, Protocol

from typing_extensions import TypeVar

from service.bulk.errors import BrokenImage

Label = int | str | None
LabelType = Literal["integer", "text"] | None
"""The type of a source's labels; None: it has no labels."""

_LARGEST_INTEGER = (1 << 63) - 1

Content = TypeVar("Content", default=bytes, covariant=True)
"""What an entry contains: the bytes of an image file, unless another type is given."""


class Position(NamedTuple):
    """A place in a source: ``offset`` entries of part number ``part`` precede it."""

    part: int
    offset: int


@dataclass(frozen=True)
class Entry(Generic[Content]):
    """An image. ``read`` returns its file or tokens, or raises ``BrokenImage``; it is called from another thread."""

    key: str
    label: Label
    read: Callable[[], Content]


class Part(Protocol[Content]):
    """A sequence of entries in a fixed order, such as one tar file."""

    def count(self) -> int:
        """Number of entries."""

    def entries(self, start: int) -> Iterator[Entry[Content]]:
        """The entries from number ``start`` on. Raises ``OSError`` if the part itself cannot be read."""


@dataclass(frozen=True)
class Source(Generic[Content]):
    """A dataset.

    Attributes:
        name: its folder, file or URL, absolute.
        kind: folder, webdataset or parquet.
        parts: its files, in order.
        digest: changes whenever a file is added, removed or changed.
        labels: the type of its labels.
        classes: names of integer labels, if the source has them.
        total: number of entries, if known without reading all of them.
    """

    name: str
    kind: str
    parts: tuple[Part[Content], ...]
    digest: str
    labels: LabelType = None
    classes: tuple[str, ...] | None = None
    total: int | None = None

    def entries(self, start: Position) -> Iterator[tuple[Position, Entry[Content]]]:
        """The entries from a position on, each with the position after it."""
        for number in range(start.part, len(self.parts)):
            first = start.offset if number == start.part else 0
            for offset, entry in enumerate(self.parts[number].entries(first), first + 1):
                yield Position(number, offset), entry


def integer_label(value: int | str) -> int:
    """An integer label. Raises ``ValueError`` for a text of another form, ``BrokenImage`` for more than 64 bits."""
    label = int(value)
    if not -_LARGEST_INTEGER <= label <= _LARGEST_INTEGER:
        raise BrokenImage(f"its class has more than 64 bits: {label}")
    return label
