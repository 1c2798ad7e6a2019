"""Class folders as a dataset source: images in folders named after their classes.

::

    DIR/train/cat/1.jpg           DIR/cat/1.jpg                   DIR/pets/cat/1.jpg      class "pets/cat"
    DIR/val/cat/2.jpg             DIR/cat/2.jpg  1 in 20 is held  DIR/pets/cat/old/2.jpg  also class "pets/cat"
                                                 out for val      DIR/1.jpg, without folders: class "all"
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.arrays import Ids
from models.data.decoding import IMAGE_SUFFIXES
from models.data.sources import BadSamples, Split
from models.errors import DataError

VALIDATION_FRACTION = 0.05
FLAT_CLASS = "all"


class _File(NamedTuple):
    path: str  # relative, with slashes
    size: int
    modified: int


class ImageFolder:
    """One split of class folders. See ``Source``. Files outside of class folders are added to ``bad_samples``; without
    class folders all files have the class ``all``.

    Raises ``DataError`` if these are more than 1 %, if there are no images, if val has classes that train lacks, or if a
    split held out by path digests is empty.
    """

    def __init__(self, folder: Path, split: Split, bad_samples: BadSamples) -> None:
        train, val = folder / "train", folder / "val"
        root = next((root for root in (train, val) if root.is_dir()), folder)
        files = _list_images(root)
        classes = class_folders(file.path for file in files)
        is_flat = bool(files) and not classes
        if not val.is_dir():
            files = _hold_out(root, files, split)
        elif root != folder / split:
            root = folder / split
            files = _list_images(root)
            _check_classes(root, files, classes)
        if not classes and not is_flat:
            raise DataError(f"no {split}-*.tar or {split}-*.tar.gz in {folder}, and no folders with images")
        self.names: tuple[str, ...] = (FLAT_CLASS,) if is_flat else tuple(sorted(classes))
        numbers = {name: number for number, name in enumerate(self.names)}
        found = ((file, FLAT_CLASS if is_flat else class_of(file.path, classes)) for file in files)
        labelled = [(file, numbers[name]) for file, name in found if name is not None]
        self.labels: Ids = np.array([label for _, label in labelled], dtype=np.int64)
        self._root = root
        self._files = [file for file, _ in labelled]
        for file in files:
            if not is_flat and "/" not in file.path:
                bad_samples.add(file.path, f"is in {root} itself, not in a class folder")
        bad_samples.check(len(self._files) + len(bad_samples))

    def fingerprint(self) -> str:
        """A digest of paths, sizes and modification times."""
        digest = hashlib.sha256()
        for path, size, modified in self._files:
            digest.update(f"{path}\0{size}\0{modified}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def name(self, row: int) -> str:
        """The path of an image, relative to the folder."""
        return self._files[row].path

    def read(self, row: int) -> bytes:
        """The bytes of an image file. Raises ``OSError``."""
        return (self._root / self._files[row].path).read_bytes()


def _list_images(root: Path) -> list[_File]:
    """All files with an image suffix, sorted by path."""
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
                size, modified = status.st_size, status.st_mtime_ns
            except OSError:  # a broken link: reading it will report the error
                size, modified = 0, 0
            found.append(_File(path.relative_to(root).as_posix(), size, modified))
    return sorted(found)


def _check_classes(root: Path, files: list[_File], classes: set[str]) -> None:
    unknown = {file.path.rpartition("/")[0] for file in files if class_of(file.path, classes) is None} - {""}
    if unknown:
        shown = ", ".join(sorted(unknown)[:8]) + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else "")
        raise DataError(f"{root} has classes that train lacks: {shown}")


def _hold_out(root: Path, files: list[_File], split: Split) -> list[_File]:
    """The files of a split when there is no ``val`` folder: the digest of its path assigns each file."""
    chosen = [file for file in files if _is_validation(file.path) == (split == "val")]
    if files and not chosen:
        raise DataError(
            f"one image in twenty is held out for validation, and with the {len(files)} in {root} none is left for "
            f"{split}: sort them into folders train and val"
        )
    return chosen


def _is_validation(path: str) -> bool:
    digest = hashlib.sha256(path.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8]) < VALIDATION_FRACTION * 2**64


def class_folders(paths: Iterable[str]) -> set[str]:
    """The classes of files at ``paths``, which are relative and use slashes."""
    holding = {path.rpartition("/")[0] for path in paths} - {""}
    return {next(parent for parent in _parents(f"{folder}/") if parent in holding) for folder in holding}


def class_of(path: str, classes: Set[str]) -> str | None:
    """The class of a file, or None if no parent folder is a class."""
    return next((parent for parent in _parents(path) if parent in classes), None)


def _parents(path: str) -> list[str]:
    """``a``, ``a/b`` of ``a/b/photo.jpg``."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
