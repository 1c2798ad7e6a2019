"""The options of a tokenization job, and its result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from service.bulk.crops import Crops
from service.bulk.entries import Source
from service.cpu_quota import usable_cores

_CPU_BATCH, _GPU_BATCH = 16, 128


@dataclass(frozen=True, kw_only=True)
class Job:
    """The options of ``titok tokenize``.

    ``shard_images``: entries per shard. ``batch_size``: most crops in a batch, which has at least one image; 0: depends on
    the device. ``threads`` decode, and on a CPU encode as well; 0: one per core. ``max_pixels``: limit for one image.
    """

    source: Source
    destination: Path
    tokenizer: str
    weights: str | None
    device: str
    dtype: str
    format: str
    crops: Crops
    shard_images: int
    batch_size: int
    threads: int
    max_pixels: int

    def on(self, device_type: str) -> Self:
        """The job with the defaults for a device."""
        batch_size = self.batch_size or (_CPU_BATCH if device_type == "cpu" else _GPU_BATCH)
        return replace(self, batch_size=batch_size, threads=self.threads or usable_cores())

    @property
    def batch_images(self) -> int:
        """Images per batch."""
        return max(1, self.batch_size // self.crops.count)


@dataclass(frozen=True)
class Result:
    """Counts of everything in the destination, whichever run wrote it."""

    images: int
    broken: int
    shards: int
