"""Photographs to train on and to measure with: from folders of classes or WebDataset shards, held or streamed.

::

    DIR/train/CLASS/*.jpg, DIR/val/...  ─┐                     ┌─ fits ──> InMemoryDataset    one array of bytes,
    DIR/CLASS/*.jpg                     ─┼─> open_dataset ─────┤                               on the device if it fits
    DIR/train-*.tar[.gz], DIR/val-*.tar ─┘                     └─ else ──> StreamingDataset   decoded as needed
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.data.bad_samples import BadSamples
from models.data.decode_cache import Progress, decode_to_cache
from models.data.image_folder import ImageFolder
from models.data.shards import WebDatasetShards, find_shards, read_class_names
from models.data.sources import Source, Split
from models.data.streaming import StreamingDataset
from models.errors import DataError

__all__ = [
    "ImageDataset",
    "InMemoryDataset",
    "StreamingDataset",
    "class_names",
    "load_dataset",
    "open_dataset",
]

ROWS_AT_ONCE = 4096


class ImageDataset(Protocol):
    """Photographs with their classes, by rows 0 to N - 1."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Positions in ``names``, int64 [N]."""

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each class."""

    def __len__(self) -> int: ...

    def batch(self, rows: NDArray[np.int64], generator: torch.Generator | None = None) -> Tensor:
        """The images of ``rows`` int64 [B] as float32 [B, 3, S, S] in [0, 1].

        ``generator`` allows another square than the centre one, at random, where the set has the whole photograph.
        """

    def prefetch(self, rows: NDArray[np.int64], generator: torch.Generator | None = None) -> None:
        """Says which batch will be asked for next; ``generator`` in the state in which that will find its own."""

    def to(self, device: torch.device | str) -> Self:
        """The same photographs with batches on ``device``."""


@dataclass(frozen=True)
class InMemoryDataset:
    """``images`` uint8 [N, S, S, 3] RGB, centre squares; ``labels`` int64 [N], positions in ``names``.

    ``resident`` is a copy of the images on ``device``, or None.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: tuple[str, ...] = ()
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    resident: Tensor | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: NDArray[np.int64], generator: torch.Generator | None = None) -> Tensor:  # noqa: ARG002
        """The images of ``rows`` int64 [B] as float32 [B, 3, S, S] in [0, 1], on the device."""
        if self.resident is not None:
            images = self.resident[torch.from_numpy(rows).to(self.device)]
        else:
            images = torch.from_numpy(self.images[rows]).to(self.device)
        return images.permute(0, 3, 1, 2).float().div_(255.0)

    def prefetch(self, rows: NDArray[np.int64], generator: torch.Generator | None = None) -> None:
        """Nothing to do: the images are there."""

    def to(self, device: torch.device | str) -> InMemoryDataset:
        """Batches on ``device``; a CUDA device holds all images itself if they fit into half of its free memory."""
        device = torch.device(device)
        resident = None
        if device.type == "cuda" and self.images.nbytes <= torch.cuda.mem_get_info(device)[0] // 2:
            resident = torch.empty(self.images.shape, dtype=torch.uint8, device=device)
            for start in range(0, len(self), ROWS_AT_ONCE):
                part = slice(start, start + ROWS_AT_ONCE)
                resident[part] = torch.from_numpy(np.array(self.images[part])).to(device)
        return replace(self, device=device, resident=resident)


def open_dataset(
    folder: Path,
    split: Split,
    *,
    size: int,
    cache: Path,
    memory_limit_bytes: int | None = None,
    progress: Progress | None = None,
) -> InMemoryDataset | StreamingDataset:
    """The photographs of one split at S = ``size``, decoded into ``cache`` once if they fit into the limit.

    ``folder`` holds WebDataset shards (see :mod:`models.data.shards`) or else folders of classes (see
    :mod:`models.data.image_folder`). The limit is half of the machine's memory by default; above it photographs are
    decoded as batches ask for them. Images of any size are brought to S x S by :func:`models.preprocess.eval_crop`.
    ``progress`` hears of each photograph that is decoded into the cache.

    Raises :class:`DataError`: nothing there, classes that do not match, more than 1 % that can not be read, compressed
    shards above the limit, no room in ``cache``.
    """
    limit = _half_of_memory() if memory_limit_bytes is None else memory_limit_bytes
    most = limit // (size * size * 3)
    source, bad_samples = _source(folder, split), BadSamples()
    arrays = decode_to_cache(
        source, split, size=size, cache=cache, bad_samples=bad_samples, most=most, progress=progress
    )
    if arrays is None:
        return StreamingDataset(source.members(cache, bad_samples), size)
    return _held(source, *arrays)


def load_dataset(folder: Path, split: Split, *, size: int, cache: Path) -> InMemoryDataset:
    """As :func:`open_dataset`, but however many they are, as an array that is mapped from ``cache``."""
    source = _source(folder, split)
    arrays = decode_to_cache(source, split, size=size, cache=cache, bad_samples=BadSamples())
    assert arrays is not None  # noqa: S101 - nothing was said to be too much
    return _held(source, *arrays)


def class_names(folder: Path) -> list[str]:
    """Names of the classes, ``group/name``, in the order of their numbers; :class:`DataError` if nothing names them."""
    names = read_class_names(folder)
    if names is None:
        names = _source(folder, "train").names
    if names is None:
        raise DataError(f"no classes.json in {folder}")
    return list(names)


def _has_shards(folder: Path) -> bool:
    return bool(find_shards(folder, "train") or find_shards(folder, "val"))


def _source(folder: Path, split: Split) -> Source:
    if _has_shards(folder):
        return WebDatasetShards(folder, split)
    source = ImageFolder(folder, split)
    if not source.names:
        raise DataError(
            f"no {split}-*.tar or {split}-*.tar.gz in {folder}, and no folders of classes with images either"
        )
    return source


def _held(source: Source, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> InMemoryDataset:
    # Without a list of classes their numbers are their names.
    numbers = range(int(labels.max()) + 1)
    return InMemoryDataset(images, labels, tuple(map(str, numbers)) if source.names is None else source.names)


def _half_of_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
