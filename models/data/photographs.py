"""Photographs for training: WebDataset shards, decoded once into one array of bytes that is then mapped, not read.

::

    data/train-0000.tar.gz ...   000017.webp  000017.cls     ->   cache/train-<fingerprint>.images   uint8 [N, S, S, 3]
    data/val-0000.tar.gz ...                                       cache/train-<fingerprint>.labels.npy  int64 [N]
    data/classes.json            {"0": "group/name", ...}

A small set decodes in a minute and trains for hours, so decoding inside the loop would only cost.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from webdataset import tariterators

__all__ = ["DataError", "Photographs", "class_names", "load_photographs"]

log = logging.getLogger(__name__)

MAX_FAULTY = 0.01
IMAGE_SUFFIXES = ("webp", "jpg", "jpeg", "png")


class DataError(Exception):
    """The data can not be used: no shards, classes that do not match, or too many members that can not be read."""


@dataclass(frozen=True)
class Photographs:
    """``images`` uint8 [N, S, S, 3] RGB, ``labels`` int64 [N]: positions in ``classes.json``."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: NDArray[np.int64]) -> Tensor:
        """The images of ``rows`` as float32 [B, 3, S, S] in [0, 1]."""
        return torch.from_numpy(self.images[rows]).permute(0, 3, 1, 2).float().div_(255.0)


def class_names(folder: Path) -> list[str]:
    """Names of the classes, ``group/name``, in the order of their numbers."""
    names: dict[str, str] = json.loads((folder / "classes.json").read_text(encoding="utf-8"))
    return [names[str(number)] for number in range(len(names))]


def load_photographs(folder: Path, split: Literal["train", "val"], *, size: int, cache: Path) -> Photographs:
    """Decodes the shards of one split at S = ``size``, or maps what an earlier call decoded.

    Members that can not be read are counted, named in the log, and left out; :class:`DataError` above 1 %.
    """
    shards = sorted([*folder.glob(f"{split}-*.tar"), *folder.glob(f"{split}-*.tar.gz")])
    if not shards:
        raise DataError(f"no {split}-*.tar or {split}-*.tar.gz in {folder}")
    described = [(shard.name, shard.stat().st_size, shard.stat().st_mtime_ns) for shard in shards]
    fingerprint = hashlib.sha256(json.dumps([size, described]).encode()).hexdigest()[:12]
    image_file = cache / f"{split}-{fingerprint}.images"
    label_file = cache / f"{split}-{fingerprint}.labels.npy"
    # The labels are renamed into place last, so their presence says that both are whole.
    if not label_file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _decode(shards, len(class_names(folder)), size, image_file, label_file)
    labels = np.load(label_file)
    images = np.memmap(image_file, dtype=np.uint8, mode="r", shape=(len(labels), size, size, 3))
    return Photographs(images, labels)


def _decode(shards: list[Path], classes: int, size: int, image_file: Path, label_file: Path) -> None:
    faults: list[str] = []
    labels: list[int] = []
    with (partial := image_file.with_suffix(".partial")).open("wb") as sink:
        for name, sample in _samples(shards, faults):
            try:
                pixels, label = _decode_sample(sample, classes, size)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                faults.append(f"{name}: {error}")
                continue
            sink.write(pixels)
            labels.append(label)
    for fault in faults:
        log.warning("left out %s", fault)
    if len(faults) > MAX_FAULTY * (len(faults) + len(labels)):
        partial.unlink()
        raise DataError(f"{len(faults)} of {len(faults) + len(labels)} members can not be used; first: {faults[0]}")
    partial.replace(image_file)
    with (partial := label_file.with_suffix(".partial")).open("wb") as sink:
        np.save(sink, np.array(labels, dtype=np.int64))
    partial.replace(label_file)
    log.info("decoded %d images from %d shards, left out %d", len(labels), len(shards), len(faults))


def _samples(shards: list[Path], faults: list[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Every sample with its name, ``shard/key``; a shard that ends early is one fault."""

    def broken(error: Exception) -> bool:
        faults.append(str(error))
        return True

    for shard in shards:
        # webdataset opens shards by itself too, but leaves them open.
        with shard.open("rb") as stream:
            members = tariterators.tar_file_expander([{"url": shard.name, "stream": stream}], handler=broken)
            for sample in tariterators.group_by_keys(members, handler=broken):
                yield f"{shard.name}/{sample['__key__']}", sample


def _decode_sample(sample: dict[str, bytes], classes: int, size: int) -> tuple[bytes, int]:
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if suffix in sample), None)
    if suffix is None or "cls" not in sample:
        raise ValueError("not an image with its class")
    label = int(sample["cls"])
    if not 0 <= label < classes:
        raise ValueError(f"class {label} is not in classes.json, which has 0 to {classes - 1}")
    with Image.open(io.BytesIO(sample[suffix])) as image:
        if image.size != (size, size):
            raise ValueError(f"image is {image.width}x{image.height}, not {size}x{size}")
        return image.convert("RGB").tobytes(), label
