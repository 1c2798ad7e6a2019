"""Batches of a source's entries on any device: their crops, their tokens, and the shards that they belong to."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from models.runtime.device_memory import is_out_of_memory, release_memory
from models.tokenizer import Tokenizer
from service.bulk.entries import Entry, Position
from service.bulk.errors import BrokenImage
from service.bulk.job import Job
from service.bulk.shards import BrokenEntry, Row, Shard
from service.imaging.decoding import decode_image
from service.imaging.errors import ImageError
from service.imaging.limits import MediaLimits

Pixels = npt.NDArray[np.uint8]


Rows = tuple[list[Row], list[BrokenEntry]]
"""The tokens of a batch, and its entries without tokens."""


class Batch(NamedTuple):
    """Consecutive entries of one shard; ``is_last``: the shard's last ones."""

    shard: Shard
    entries: list[Entry]
    is_last: bool


def crops_of(entry: Entry, size: int, job: Job) -> Pixels | BrokenImage:
    """An entry's crops uint8 [crops, S, S, 3], S = ``size``, or why it has none."""
    try:
        decoded = decode_image(
            entry.read(), limits=MediaLimits(max_pixels=job.max_pixels), options=job.preprocessing, size=size
        )
        return job.crops.take(decoded, size)
    except BrokenImage as error:
        return error
    except (ImageError, ValueError) as error:
        return BrokenImage(str(error))


def encode_batch(
    entries: Sequence[Entry], crops: Iterable[Pixels | BrokenImage], tokenizer: Tokenizer, job: Job
) -> Callable[[], Rows]:
    """Submits the crops of entries to the tokenizer; calling the result waits for the tokens."""
    size, on_gpu = tokenizer.image_size, tokenizer.device.type == "cuda"
    images = torch.empty((len(entries), job.crops.count, size, size, 3), dtype=torch.uint8, pin_memory=on_gpu)
    pixels = images.numpy()
    good, broken = list[Entry](), list[BrokenEntry]()
    for entry, found in zip(entries, crops, strict=True):
        if isinstance(found, BrokenImage):
            broken.append(BrokenEntry(entry.key, str(found)))
        else:
            pixels[len(good)] = found
            good.append(entry)
    pending = _submit(images[: len(good)].flatten(0, 1), tokenizer)

    def result() -> Rows:
        tokens = pending().numpy().astype(np.uint16).reshape(len(good), job.crops.count, tokenizer.num_tokens)
        return [Row(entry.key, entry.label, ids) for entry, ids in zip(good, tokens, strict=True)], broken

    return result


def _submit(images: torch.Tensor, tokenizer: Tokenizer) -> Callable[[], torch.Tensor]:
    """Submits images to the tokenizer; a batch that turns out not to fit into memory is encoded in halves."""
    try:
        pending = tokenizer.submit_encode(images)
    except Exception as error:
        failure = error.with_traceback(None)  # which would keep tensors of the failed batch

        def pending() -> torch.Tensor:
            raise failure

    def tokens() -> torch.Tensor:
        try:
            return pending()
        except Exception as error:
            if not is_out_of_memory(error) or len(images) == 1:
                raise
        release_memory(tokenizer.device)
        return torch.cat([_submit(half, tokenizer)() for half in images.chunk(2)])

    return tokens


def batches(entries: Iterable[tuple[Position, Entry]], job: Job, first_shard: int) -> Iterator[Batch]:
    """Splits entries into batches that end where shards end, so that a shard's bytes do not depend on where a run began."""
    shard = Shard(first_shard, Position(0, 0))
    batch: list[Entry] = []
    count = 0
    for position, entry in entries:
        shard.end = position
        batch.append(entry)
        count += 1
        is_last = count == job.shard_images
        if is_last or len(batch) == job.batch_images:
            yield Batch(shard, batch, is_last)
            batch = []
        if is_last:
            shard, count = Shard(shard.number + 1, shard.end), 0
    if count:
        yield Batch(shard, batch, True)
