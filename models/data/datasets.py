"""Image datasets in memory or streamed, opened from class folders or WebDataset shards.

::

    DIR/train/CLASS/*.jpg, DIR/val/...  ─┐                 ┌─ fits ──> InMemoryDataset   one array, on the device
    DIR/CLASS/*.jpg                     ─┼─> open_dataset ─┤                             if it fits there
    DIR/train-*.tar[.gz], DIR/val-*.tar ─┘                 └─ else ──> StreamingDataset  decoded when needed
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.arrays import Ids, Pixels
from models.data.decode_cache import Progress, decode_to_cache
from models.data.image_folder import ImageFolder
from models.data.shards import WebDatasetShards, find_shards
from models.data.sources import BadSamples, Source, Split
from models.data.streaming import StreamingDataset

_ROWS_PER_COPY = 4096


@dataclass(frozen=True)
class InMemoryDataset:
    """Centre crops ``images`` uint8 [N, S, S, 3] RGB; ``labels`` int64 [N], indices into ``names``.

    ``resident`` is a copy of the images on ``device``, or None.
    """

    images: Pixels
    labels: Ids
    names: tuple[str, ...] = ()
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    resident: Tensor | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Ids, positions: NDArray[np.float32] | None = None) -> Tensor:  # noqa: ARG002
        """The images of ``rows`` int64 [B] as float32 [B, 3, S, S] in [0, 1], on the device."""
        if self.resident is not None:
            images = self.resident[torch.from_numpy(rows).to(self.device)]
        else:
            images = torch.from_numpy(self.images[rows]).to(self.device)
        return images.permute(0, 3, 1, 2).float().div_(255.0)

    def prefetch(self, rows: Ids, positions: NDArray[np.float32] | None = None) -> None:
        """Does nothing: the images are in memory."""

    def to(self, device: torch.device | str) -> InMemoryDataset:
        """The same dataset with batches on ``device``."""
        return replace(self, device=torch.device(device), resident=None)

    def kept_on_device(self) -> InMemoryDataset:
        """The dataset with a copy of all images on its CUDA device, if they fit into half of the free memory there."""
        if self.device.type == "cpu" or self.images.nbytes > torch.cuda.mem_get_info(self.device)[0] // 2:
            return self
        resident = torch.empty(self.images.shape, dtype=torch.uint8, device=self.device)
        for start in range(0, len(self), _ROWS_PER_COPY):
            part = slice(start, start + _ROWS_PER_COPY)
            resident[part] = torch.from_numpy(np.array(self.images[part])).to(self.device)
        return replace(self, resident=resident)


ImageDataset: TypeAlias = InMemoryDataset | StreamingDataset
"""Labelled images, by rows 0 to N - 1."""


def open_dataset(
    folder: Path,
    split: Split,
    *,
    size: int,
    cache: Path,
    memory_limit_bytes: int | None = None,
    progress: Progress | None = None,
) -> ImageDataset:
    """The images of one split at S = ``size``: decoded once into ``cache`` up to the memory limit, streamed above it.

    ``folder`` has WebDataset shards (:mod:`models.data.shards`) or class folders (:mod:`models.data.image_folder`).
    The limit is half of the machine's memory by default. Images are resized and cropped to S x S by
    :func:`models.preprocess.eval_crop`. ``progress`` is called for each image that is decoded into the cache.

    Raises ``DataError``: no images, mismatched classes, more than 1 % unreadable, no space in ``cache``.
    """
    if memory_limit_bytes is None:
        memory_limit_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    limit = memory_limit_bytes // (size * size * 3)
    bad_samples = BadSamples()
    source: Source
    if find_shards(folder, "train") or find_shards(folder, "val"):
        source = WebDatasetShards(folder, split, cache, bad_samples)
    else:
        source = ImageFolder(folder, split, bad_samples)
    arrays = decode_to_cache(
        source, split, size=size, cache=cache, bad_samples=bad_samples, limit=limit, progress=progress
    )
    if arrays is None:
        return StreamingDataset(source, size)
    return InMemoryDataset(*arrays, source.names)


def has_training_images(folder: Path) -> bool:
    """Whether a folder has a training split: False if it has a validation split alone."""
    if find_shards(folder, "train") or (folder / "train").is_dir():
        return True
    return not (find_shards(folder, "val") or (folder / "val").is_dir())


def load_dataset(folder: Path, split: Split, *, size: int, cache: Path) -> InMemoryDataset:
    """As :func:`open_dataset` without a memory limit: the array is mapped from ``cache``."""
    dataset = open_dataset(folder, split, size=size, cache=cache, memory_limit_bytes=sys.maxsize)
    assert isinstance(dataset, InMemoryDataset)  # noqa: S101 - there is no limit
    return dataset
