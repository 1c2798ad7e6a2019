"""What is to be done to a source's entries, on any device: how one becomes squares, and which make a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from service.bulk.entries import Entry, Position
from service.bulk.errors import BrokenImage
from service.bulk.shards import Row, Shard
from service.bulk.views import Views
from service.imaging.decoding import decode_image
from service.imaging.errors import ImageError
from service.imaging.limits import MediaLimits

__all__ = ["Entries", "Pixels", "Progress", "Work", "batches", "rows_of", "squares_of"]

T = TypeVar("T")
Pixels = npt.NDArray[np.uint8]
Entries = Iterable[tuple[Position, Entry]]
Progress = Callable[[int, int], object]
"""Called with the entries that are done since the last call, and how many of these are broken."""


@dataclass(frozen=True)
class Work:
    """What is to be done to each entry, and how.

    Attributes:
        views: the squares of an image.
        shard_images: entries a shard.
        batch_size: squares a batch, at most; at least one image goes into each.
        threads: that decode; on a CPU they encode as well.
        max_pixels: of one image, by its header.
    """

    views: Views
    shard_images: int
    batch_size: int
    threads: int
    max_pixels: int

    @property
    def batch_images(self) -> int:
        """Images a batch."""
        return max(1, self.batch_size // self.views.count)


def squares_of(entry: Entry, size: int, work: Work) -> Pixels | BrokenImage:
    """An entry's squares uint8 [views, S, S, 3], S = ``size``, or what is wrong with it."""
    try:
        decoded = decode_image(entry.read(), limits=MediaLimits(max_pixels=work.max_pixels))
        return work.views.of(decoded.image, size)
    except BrokenImage as error:
        return error
    except (ImageError, ValueError) as error:
        return BrokenImage(str(error))


def rows_of(entries: Sequence[Entry], ids: Tensor) -> list[Row]:
    """The rows of entries whose squares, one entry's after the other's, have these ids int64 [entries x views, K]."""
    tokens = ids.numpy().astype(np.uint16).reshape(len(entries), -1, ids.shape[-1])
    return [Row(entry.key, entry.label, own) for entry, own in zip(entries, tokens, strict=True)]


def batches(items: Iterable[tuple[Position, T]], work: Work, first_shard: int) -> Iterator[tuple[Shard, list[T], bool]]:
    """Lists of items for one shard each, and whether the shard is whole with them.

    They end where shards end, so that a shard's bytes do not depend on where a run began.
    """
    shard = Shard(first_shard, Position(0, 0))
    batch: list[T] = []
    count = 0
    for position, item in items:
        shard.end = position
        batch.append(item)
        count += 1
        whole = count == work.shard_images
        if whole or len(batch) == work.batch_images:
            yield shard, batch, whole
            batch = []
        if whole:
            shard, count = Shard(shard.number + 1, shard.end), 0
    if count:
        yield shard, batch, True
