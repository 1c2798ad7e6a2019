"""Class folders as a dataset source: images in folders named after their classes.

::

    DIR/train/cat/1.jpg           DIR/cat/1.jpg                   DIR/pets/cat/1.jpg      class "pets/cat"
    DIR/val/cat/2.jpg             DIR/cat/2.jpg  1 in 20 is held  DIR/pets/cat/old/2.jpg  also class "pets/cat"
                                                 out for val      DIR/1.jpg, without folders: class "all"
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.arrays import Ids
from models.data.decoding import IMAGE_SUFFIXES
from models.data.listing import list_files, state_of
from models.data.sources import BadSamples, Split
from models.data.splits import describe_splits, splits_of_images
from models.errors import DataError, NoImagesError

VALIDATION_FRACTION = 0.05
FLAT_CLASS = "all"


class _File(NamedTuple):
    path: str  # relative, with slashes, without the folder of the split
    file: str  # relative


class ImageFolder:
    """One split (see :mod:`models.data.splits`) of class folders. See ``Source``. Files outside of class folders are added
    to ``bad_samples``; without class folders all files have the class ``all``.

    Raises ``DataError`` if these are more than 1 %, if there are no images, if val has classes that train lacks, if a split
    held out by path digests is empty, or if there is neither a split train nor val.
    """

    def __init__(self, folder: Path, split: Split, bad_samples: BadSamples) -> None:
        files, classes = _choose(folder, split)
        is_flat = bool(files) and not classes
        self.names: tuple[str, ...] = (FLAT_CLASS,) if is_flat else tuple(sorted(classes))
        numbers = {name: number for number, name in enumerate(self.names)}
        found = ((file, FLAT_CLASS if is_flat else class_of(file.path, classes)) for file in files)
        labelled = [(file, numbers[name]) for file, name in found if name is not None]
        self.labels: Ids = np.array([label for _, label in labelled], dtype=np.int64)
        self._root = folder
        self._files = [file for file, _ in labelled]
        for file in files:
            if not is_flat and "/" not in file.path:
                bad_samples.add(file.path, f"is in no class folder of {folder}")
        bad_samples.check(len(self._files) + len(bad_samples))

    def fingerprint(self) -> str:
        """A digest of paths, sizes and modification times."""
        digest = hashlib.sha256()
        for path, file in self._files:
            size, modified = state_of(self._root / file)
            digest.update(f"{path}\0{size}\0{modified}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def name(self, row: int) -> str:
        """The path of an image, relative to the folder."""
        return self._files[row].path

    def read(self, row: int) -> bytes:
        """The bytes of an image file. Raises ``OSError``."""
        return (self._root / self._files[row].file).read_bytes()


def _choose(folder: Path, split: Split) -> tuple[list[_File], set[str]]:
    """The files of a split, and the classes of training files, if there are any, else of these."""
    splits = images_by_split(folder)
    if not splits:
        raise NoImagesError(folder)
    if "val" in splits and (None not in splits or "train" in splits):
        files = splits.get(split, [])
        classes = class_folders(file.path for file in splits.get("train", files))
        _check_classes(folder, files, classes)
        return files, classes
    if "train" in splits or list(splits) == [None]:
        files = splits["train" if "train" in splits else None]
        return _hold_out(folder, files, split), class_folders(file.path for file in files)
    listed = describe_splits({split: len(files) for split, files in splits.items()})
    raise DataError(f"{folder} has the splits {listed}: expected train and val, or train alone")


def images_by_split(folder: Path) -> Mapping[str | None, list[_File]]:
    """The images of each split; None: those in no folder of a split."""
    found = defaultdict[str | None, list[_File]](list)
    paths = list_files(folder, tuple(f".{suffix}" for suffix in IMAGE_SUFFIXES))
    for file, (split, path) in splits_of_images(paths).items():
        found[split].append(_File(path, file))
    return {split: sorted(files) for split, files in found.items()}


def _check_classes(folder: Path, files: list[_File], classes: set[str]) -> None:
    unknown = {file.path.rpartition("/")[0] for file in files if class_of(file.path, classes) is None} - {""}
    if unknown:
        shown = ", ".join(sorted(unknown)[:8]) + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else "")
        raise DataError(f"the val split of {folder} has classes that train lacks: {shown}")


def _hold_out(folder: Path, files: list[_File], split: Split) -> list[_File]:
    """The files of a split when there is none for validation: the digest of its path assigns each file."""
    chosen = [file for file in files if _is_validation(file.path) == (split == "val")]
    if files and not chosen:
        raise DataError(
            f"one image in twenty is held out for validation, and with the {len(files)} in {folder} none is left for "
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
