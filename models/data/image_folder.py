"""Photographs in folders named after their classes.

::

    DIR/train/cat/1.jpg           DIR/cat/1.jpg               DIR/pets/cat/1.jpg      class "pets/cat"
    DIR/val/cat/2.jpg             DIR/cat/2.jpg  1 in 20      DIR/pets/cat/old/2.jpg  class "pets/cat" as well
                                  is for validation

A class is the topmost folder with photographs right in it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.data.bad_samples import BadSamples
from models.data.class_folders import class_folders, class_of
from models.data.decoding import IMAGE_SUFFIXES
from models.data.sources import Sample, Split
from models.errors import DataError

__all__ = ["ImageFolder"]

VALIDATION_SHARE = 0.05


class _File(NamedTuple):
    path: str  # relative, with slashes
    size: int
    modified: int


class ImageFolder:
    """One split of a folder of classes: a source, and its own members."""

    def __init__(self, folder: Path, split: Split) -> None:
        train, val = folder / "train", folder / "val"
        root = next((root for root in (train, val) if root.is_dir()), folder)
        files = _files(root)
        classes = class_folders(file.path for file in files)
        if not val.is_dir():
            files = _share(root, files, split)
        elif root != folder / split:
            root = folder / split
            files = _files(root)
            _check_classes(root, files, classes)
        self.names: tuple[str, ...] = tuple(sorted(classes))
        numbers = {name: number for number, name in enumerate(self.names)}
        labelled = [(file, numbers[name]) for file in files if (name := class_of(file.path, classes)) is not None]
        self.labels: NDArray[np.int64] = np.array([label for _, label in labelled], dtype=np.int64)
        self._root = root
        self._files = [file for file, _ in labelled]
        self._stray = [file.path for file in files if "/" not in file.path]

    def described(self) -> str:
        """A digest of names, sizes and times."""
        digest = hashlib.sha256()
        for path, size, modified in self._files:
            digest.update(f"{path}\0{size}\0{modified}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def count(self, enough: int, bad_samples: BadSamples) -> int:  # noqa: ARG002
        """How many photographs lie in folders of classes."""
        return len(self._files)

    def samples(self, bad_samples: BadSamples) -> Iterator[Sample]:
        """By the names of their files, class after class."""
        self._name_stray(bad_samples)
        for row, label in enumerate(self.labels.tolist()):
            yield Sample(self.name(row), label, partial(self.read, row))

    def members(self, cache: Path, bad_samples: BadSamples) -> ImageFolder:  # noqa: ARG002
        """The folder itself: files need no index."""
        self._name_stray(bad_samples)
        bad_samples.check(len(self._files) + len(bad_samples))
        return self

    def _name_stray(self, bad_samples: BadSamples) -> None:
        for path in self._stray:
            bad_samples.add(path, f"lies in {self._root} itself, not in a folder named after its class")

    def name(self, row: int) -> str:
        """The path of a row's file, below the folder."""
        return self._files[row].path

    def read(self, row: int) -> bytes:
        """The bytes of a row's file."""
        return (self._root / self._files[row].path).read_bytes()


def _files(root: Path) -> list[_File]:
    """Every file that is named like an image, sorted by its path."""
    found = []
    for parent, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            # Some systems write a hidden ._photo.jpg beside each photo.jpg.
            if name.startswith(".") or name.rpartition(".")[2].lower() not in IMAGE_SUFFIXES:
                continue
            path = Path(parent, name)
            try:
                status = path.stat()
            except OSError:  # a link to nothing: reading it will say so
                found.append(_File(path.relative_to(root).as_posix(), 0, 0))
                continue
            found.append(_File(path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns))
    return sorted(found)


def _check_classes(root: Path, files: list[_File], classes: set[str]) -> None:
    unknown = {file.path.rpartition("/")[0] for file in files if class_of(file.path, classes) is None} - {""}
    if unknown:
        shown = ", ".join(sorted(unknown)[:8]) + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else "")
        raise DataError(f"{root} holds classes that train does not: {shown}")


def _share(root: Path, files: list[_File], split: Split) -> list[_File]:
    """The part of a split where only the digest of its path says which photograph is for validation."""
    share = [file for file in files if _is_validation(file.path) == (split == "val")]
    if files and not share:
        raise DataError(
            f"one photograph in twenty is for validation, and of the {len(files)} in {root} that leaves none for "
            f"{split}: sort them into folders train and val"
        )
    return share


def _is_validation(path: str) -> bool:
    digest = hashlib.sha256(path.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8]) < VALIDATION_SHARE * 2**64
