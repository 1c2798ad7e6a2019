"""Shards of the output: where they begin in the source, and their tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from service.bulk.entries import Label, Position


@dataclass(frozen=True)
class Row:
    """One image: ``tokens`` uint16 [crops, K], or latents [crops, K, C], and ``image``, its file or its pixels, if the
    output contains it.
    """

    key: str
    label: Label
    tokens: npt.NDArray[Any]
    image: bytes = b""


@dataclass(frozen=True)
class BrokenEntry:
    """An image that was left out, and why."""

    key: str
    reason: str


@dataclass
class Shard:
    """Shard ``number`` of the output, in the order of the source; ``end`` is the position after its last entry."""

    number: int
    end: Position
    rows: list[Row] = field(default_factory=list)
    broken: list[BrokenEntry] = field(default_factory=list)


def shard_starts(counts: Sequence[int], start: Position, shard_images: int) -> Iterator[Position]:
    """Where shards of ``shard_images`` entries begin, the first at ``start``. ``counts`` are the entries of each part from
    ``start.part`` on, as ``Part.count`` returns them. With these shards can be made in any order.
    """
    offset = start.offset
    for part, count in enumerate(counts, start.part):
        while offset < count:
            yield Position(part, offset)
            offset += shard_images
        offset -= count
