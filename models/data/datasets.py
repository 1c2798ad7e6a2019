"""Image datasets in memory or streamed, opened from class folders or WebDataset shards.

::

    DIR/train/CLASS/*.jpg, DIR/val/...  ─┐                 ┌─ fits ──> InMemoryDataset   one array, on the device
    DIR/CLASS/*.jpg                     ─┼─> open_dataset ─┤                             if it fits there
    DIR/train-*.tar, DIR/val-*.tar      ─┘                 └─ else ──> StreamingDataset  decoded when needed
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.arrays import Ids, Pixels
from models.data.decode_cache import UNCROPPED_PIXELS, Progress, decode_to_cache, fingerprint_of
from models.data.image_folder import ImageFolder, images_by_split
from models.data.shards import WebDatasetShards, find_shards
from models.data.sources import BadSamples, Source, Split
from models.data.streaming import StreamingDataset
from models.runtime.transfers import to_device

_BYTES_PER_COPY = 1 << 26


@dataclass(frozen=True)
class InMemoryDataset:
    """Images with their ``labels`` int64 [N], indices into ``names``.

    ``images`` are centre crops uint8 [N, S, S, 3] RGB. With ``sides`` int64 [N, 2], heights and widths of which the
    shorter is S, they are the pixels uint8 [P, 3] of uncropped images, one after another. ``resident`` is a copy of them
    on ``device``, or None. ``fingerprint`` changes whenever pixels or labels do.
    """

    images: Pixels
    labels: Ids
    names: tuple[str, ...] = ()
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    resident: Tensor | None = field(default=None, repr=False)
    sides: Ids | None = None
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Ids, positions: NDArray[np.float32] | None = None) -> Tensor:
        """The images of ``rows`` int64 [B] as float32 [B, 3, S, S] in [0, 1], on the device.

        Centre crops, or of uncropped images the crops at ``positions`` float32 [B, 2] in [0, 1): x and y, from left and
        top to right and bottom.
        """
        if self.sides is not None:
            images = self._crops(rows, self.sides[rows], positions)
        elif self.resident is not None:
            images = self.resident[to_device(torch.from_numpy(rows), self.device)]
        else:
            images = to_device(torch.from_numpy(self.images[rows]), self.device)
        return images.permute(0, 3, 1, 2).float().div_(255.0)

    def _crops(self, rows: Ids, sides: Ids, positions: NDArray[np.float32] | None) -> Tensor:
        """Crops uint8 [B, S, S, 3], with the offsets of ``models.preprocess``."""
        size = int(sides[0].min())
        spare = sides - size
        offsets = np.rint(spare / 2) if positions is None else positions[:, ::-1].astype(np.float64) * (spare + 1)
        (top, left), (height, width) = offsets.astype(np.int64).T, sides.T
        starts = self._starts[rows]
        if self.resident is None:
            crops = [
                self.images[start : start + h * w].reshape(h, w, 3)[y : y + size, x : x + size]
                for start, h, w, y, x in zip(starts, height, width, top, left, strict=True)
            ]
            return to_device(torch.from_numpy(np.stack(crops)), self.device)
        line = torch.arange(size, device=self.device)
        first, across = to_device(torch.from_numpy(np.stack([starts + top * width + left, width])), self.device)
        return self.resident[first[:, None, None] + across[:, None, None] * line[:, None] + line]

    @cached_property
    def _starts(self) -> Ids:
        """The first pixel of each uncropped image."""
        assert self.sides is not None  # noqa: S101 - asked for only then
        pixels = self.sides.prod(axis=1)
        starts: Ids = np.cumsum(pixels) - pixels
        return starts

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
        rows = max(1, _BYTES_PER_COPY * len(self.images) // self.images.nbytes)
        for start in range(0, len(self.images), rows):
            part = slice(start, start + rows)
            resident[part] = to_device(torch.from_numpy(np.array(self.images[part])), self.device)
        return replace(self, resident=resident)


ImageDataset: TypeAlias = InMemoryDataset | StreamingDataset
"""Labelled images, by rows 0 to N - 1."""


def open_dataset(
    folder: Path,
    split: Split,
    *,
    size: int,
    cache: Path,
    uncropped: bool = False,
    memory_limit_bytes: int | None = None,
    progress: Progress | None = None,
) -> ImageDataset:
    """The images of one split at S = ``size``: decoded once into ``cache`` up to the memory limit, streamed above it.

    ``folder`` has WebDataset shards (:mod:`models.data.shards`) or class folders (:mod:`models.data.image_folder`).
    The limit is half of the machine's memory by default. Images are resized and cropped to S x S by
    :func:`models.preprocess.eval_crop`; in memory, batches have crops at other positions only if it is ``uncropped``.
    ``progress`` is called for each image that is decoded into the cache.

    Raises ``DataError``: no images, mismatched classes, more than 1 % unreadable, no space in ``cache``.
    """
    if memory_limit_bytes is None:
        memory_limit_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    limit = int(memory_limit_bytes / (size * size * 3 * (UNCROPPED_PIXELS if uncropped else 1.0)))
    bad_samples = BadSamples()
    source: Source
    if find_shards(folder, "train") or find_shards(folder, "val"):
        source = WebDatasetShards(folder, split, cache, bad_samples)
    else:
        source = ImageFolder(folder, split, bad_samples)
    decoded = decode_to_cache(
        source,
        split,
        size=size,
        uncropped=uncropped,
        cache=cache,
        bad_samples=bad_samples,
        limit=limit,
        progress=progress,
    )
    fingerprint = fingerprint_of(source, size)
    if decoded is None:
        return StreamingDataset(source, size, fingerprint=fingerprint)
    pixels, table = decoded
    images, sides = (pixels, table[:, 1:]) if uncropped else (pixels.reshape(-1, size, size, 3), None)
    return InMemoryDataset(images, table[:, 0].copy(), source.names, sides=sides, fingerprint=fingerprint)


def has_training_images(folder: Path) -> bool:
    """Whether a folder has a training split: False if it has a validation split alone."""
    if find_shards(folder, "train"):
        return True
    return not find_shards(folder, "val") and set(images_by_split(folder)) != {"val"}


def load_dataset(folder: Path, split: Split, *, size: int, cache: Path) -> InMemoryDataset:
    """As :func:`open_dataset` without a memory limit: the array is mapped from ``cache``."""
    dataset = open_dataset(folder, split, size=size, cache=cache, memory_limit_bytes=sys.maxsize)
    assert isinstance(dataset, InMemoryDataset)  # noqa: S101 - there is no limit
    return dataset
