"""Batches of a source's entries, the shards that they belong to, and batches that do not fit into a device's memory."""

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, NamedTuple

import torch

from models.runtime.device_memory import is_out_of_memory, release_memory
from service.bulk.entries import Content, Entry, Position
from service.bulk.job import Job
from service.bulk.shards import Shard


class Batch(NamedTuple, Generic[Content]):
    """Consecutive entries of one shard; ``is_last``: the shard's last ones."""

    shard: Shard
    entries: list[Entry[Content]]
    is_last: bool


def batches(
    entries: Iterable[tuple[Position, Entry[Content]]], job: Job[Content], first_shard: int
) -> Iterator[Batch[Content]]:
    """Splits entries into batches that end where shards end, so that a shard's bytes do not depend on where a run began."""
    shard = Shard(first_shard, Position(0, 0))
    batch: list[Entry[Content]] = []
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


def submit_in_parts(
    submit: Callable[[torch.Tensor], Callable[[], torch.Tensor]], batch: torch.Tensor, device: torch.device
) -> Callable[[], torch.Tensor]:
    """Submits a batch; one that turns out not to fit into the device's memory is computed in halves."""
    try:
        pending = submit(batch)
    except Exception as error:
        failure = error.with_traceback(None)  # which would keep tensors of the failed batch

        def pending() -> torch.Tensor:
            raise failure

    def result() -> torch.Tensor:
        try:
            return pending()
        except Exception as error:
            if not is_out_of_memory(error) or len(batch) == 1:
                raise
        release_memory(device)
        return torch.cat([submit_in_parts(submit, half, device)() for half in batch.chunk(2)])

    return result
