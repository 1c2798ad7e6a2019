"""Which entries go into which shard, told from how many entries each part has: then shards can be made in any order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from service.bulk.entries import Position

__all__ = ["shard_starts"]


def shard_starts(counts: Sequence[int], start: Position, shard_images: int) -> Iterator[Position]:
    """Where shards of so many entries begin, the first at ``start``. ``counts`` are those of the parts from
    ``start.part`` on, each as ``Part.count`` gives it.
    """
    offset = start.offset
    for part, count in enumerate(counts, start.part):
        while offset < count:
            yield Position(part, offset)
            offset += shard_images
        offset -= count
