"""Batches of a source's entries on any device: their crops, their tokens, and the shards that they belong to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from models.tokenizer import Tokenizer
from service.bulk.crops import Crops
from service.bulk.entries import Entry, Position
from service.bulk.errors import BrokenImage
from service.bulk.shards import BrokenEntry, Row, Shard
from service.imaging.decoding import decode_image
from service.imaging.errors import ImageError
from service.imaging.limits import MediaLimits

T = TypeVar("T")
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PipelineOptions:
    """How entries are processed.

    Attributes:
        crops: crops of an image.
        shard_images: entries per shard.
        batch_size: maximum number of crops in a batch; a batch has at least one image.
        threads: threads that decode; on a CPU they encode as well.
        max_pixels: limit for one image, checked in its header.
    """

    crops: Crops
    shard_images: int
    batch_size: int
    threads: int
    max_pixels: int

    @property
    def batch_images(self) -> int:
        """Images per batch."""
        return max(1, self.batch_size // self.crops.count)


@dataclass(frozen=True)
class BatchResult:
    """The tokens of a batch, and its entries without tokens."""

    rows: list[Row]
    broken: list[BrokenEntry]


def crops_of(entry: Entry, size: int, options: PipelineOptions) -> Pixels | BrokenImage:
    """An entry's crops uint8 [crops, S, S, 3], S = ``size``, or why it has none."""
    try:
        decoded = decode_image(entry.read(), limits=MediaLimits(max_pixels=options.max_pixels))
        return options.crops.take(decoded.image, size)
    except BrokenImage as error:
        return error
    except (ImageError, ValueError) as error:
        return BrokenImage(str(error))


def encode_batch(
    entries: Sequence[Entry], crops: Iterable[Pixels | BrokenImage], tokenizer: Tokenizer, options: PipelineOptions
) -> Callable[[], BatchResult]:
    """Submits the crops of entries to the tokenizer; calling the result waits for the tokens."""
    size, on_gpu = tokenizer.image_size, tokenizer.device.type == "cuda"
    images = torch.empty((len(entries), options.crops.count, size, size, 3), dtype=torch.uint8, pin_memory=on_gpu)
    pixels = images.numpy()
    good, broken = list[Entry](), list[BrokenEntry]()
    for entry, found in zip(entries, crops, strict=True):
        if isinstance(found, BrokenImage):
            broken.append(BrokenEntry(entry.key, str(found)))
        else:
            pixels[len(good)] = found
            good.append(entry)
    pending = tokenizer.submit_encode(images[: len(good)].flatten(0, 1))

    def result() -> BatchResult:
        tokens = pending().numpy().astype(np.uint16).reshape(len(good), options.crops.count, tokenizer.num_tokens)
        return BatchResult([Row(entry.key, entry.label, ids) for entry, ids in zip(good, tokens, strict=True)], broken)

    return result


def batches(
    items: Iterable[tuple[Position, T]], options: PipelineOptions, first_shard: int
) -> Iterator[tuple[Shard, list[T], bool]]:
    """The shard and the items of each batch, and whether the batch is the last of its shard.

    Batches end where shards end, so that a shard's bytes do not depend on where a run began.
    """
    shard = Shard(first_shard, Position(0, 0))
    batch: list[T] = []
    count = 0
    for position, item in items:
        shard.end = position
        batch.append(item)
        count += 1
        is_last = count == options.shard_images
        if is_last or len(batch) == options.batch_images:
            yield shard, batch, is_last
            batch = []
        if is_last:
            shard, count = Shard(shard.number + 1, shard.end), 0
    if count:
        yield shard, batch, True
