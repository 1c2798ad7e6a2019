"""Splits of a dataset, such as train and test, told from the names of its files and folders.

==========================================  ==================================================================
name of a file or folder, in any case       split
==========================================  ==================================================================
a word train, training                      train
a word val, valid, validation, dev          val
a word test, testing, eval, evaluation      test
words of several splits, ``train_test``     a split of its own, ``train-test``
``NAME-00000-of-00002``                     NAME, unless it is one of these words: Hugging Face's name of any split
==========================================  ==================================================================

Words end at anything but a letter, and where lower case becomes upper case; ``set``, ``split`` and ``data`` may follow
(``trainset``, ``train2017``, ``partial-train``, ``ImagesVal``). The words are those of Hugging Face's ``datasets``.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from models.errors import DataError

ALL, NONE = "all", "none"
"""Choose the files of all splits together, and those that name no split."""

_WORD = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])|[\W\d_]+")  # between words
_SPLIT_WORDS = (
    (re.compile(r"train(ing)?(set|split|data)?"), "train"),
    (re.compile(r"(val(id(ation)?)?|dev)(set|split|data)?"), "val"),
    (re.compile(r"(test(ing)?|eval(uation)?)(set|split|data)?"), "test"),
)
_OF_SEVERAL = re.compile(r"(.+?)-\d+-of-\d+")


class FileSplit(NamedTuple):
    """The ``split`` that a path names, if any, and the folder above the name: one of several configurations."""

    split: str | None
    configuration: str


class ImageSplit(NamedTuple):
    """The ``split`` of an image, if any, and its ``path`` without the split's folders."""

    split: str | None
    path: str


def split_of_name(name: str) -> str | None:
    """The split that the name of one file or folder names by the words of the table, or None."""
    found = [
        split
        for word in _WORD.split(name)
        for pattern, split in _SPLIT_WORDS
        if pattern.fullmatch(word.lower()) is not None
    ]
    return "-".join(dict.fromkeys(found)) or None


def split_of_file(path: str) -> FileSplit:
    """The split of an archive or table at a relative path with slashes: the file's own name counts first, then the folders
    from the innermost out.
    """
    parts = path.split("/")
    shard = _OF_SEVERAL.match(parts[-1])
    for depth in range(len(parts) - 1, -1, -1):
        if split := split_of_name(parts[depth]):
            if shard is not None and depth == len(parts) - 1 and not _is_plain(shard[1]):
                split = shard[1].lower()  # train_sft and train_gen are different splits
            return FileSplit(split, "/".join(parts[:depth]))
    return FileSplit(shard and shard[1].lower(), "/".join(parts[:-1]))


def _is_plain(name: str) -> bool:
    return any(pattern.fullmatch(name.lower()) for pattern, _ in _SPLIT_WORDS)


def splits_of_images(paths: Iterable[str]) -> dict[str, ImageSplit]:
    """The split of each image file at a relative path with slashes, by its folders alone.

    A class may be called ``test``. So a folder whose name names a split is one only if

    - all its sibling folders with images name splits, or at least half of them, and different ones;
    - or it has images in subfolders alone, as a split has, and not directly, as a class has.

    The outermost such folder counts.
    """
    paths = list(paths)
    siblings, direct = defaultdict[str, set[str]](set), set[str]()
    for folder in {path.rpartition("/")[0] for path in paths} - {""}:
        direct.add(folder)
        parts = folder.split("/")
        for depth in range(len(parts)):
            siblings["/".join(parts[:depth])].add(parts[depth])
    split_folders = {
        f"{parent}/{name}".lstrip("/"): split
        for parent, names in siblings.items()
        for name, split in _split_folders(parent, names, direct).items()
    }
    return {path: _image_split(path, split_folders) for path in paths}


def _split_folders(parent: str, names: set[str], direct: set[str]) -> dict[str, str]:
    named = {name: split for name in names if (split := split_of_name(name)) is not None}
    several = len(set(named.values())) > 1 and 2 * len(named) >= len(names)
    if several or len(named) == len(names):
        return named
    return {name: split for name, split in named.items() if f"{parent}/{name}".lstrip("/") not in direct}


def _image_split(path: str, split_folders: Mapping[str, str]) -> ImageSplit:
    parts = path.split("/")
    splits = [split_folders.get("/".join(parts[:depth])) for depth in range(1, len(parts))] + [None]
    split = next((split for split in splits if split is not None), None)
    # Some archives unpack to train/train/.
    kept = [part for part, of in zip(parts, splits, strict=True) if of is None or of != split]
    return ImageSplit(split, "/".join(kept))


def describe_splits(counts: Mapping[str | None, int]) -> str:
    """Splits with the numbers of their files, for a message."""
    return ", ".join(sorted(f"{split or NONE} ({count})" for split, count in counts.items()))


def choose_split(splits: Mapping[str, str | None], wanted: str | None, source: str) -> list[str]:
    """The files of the split ``wanted`` (or ``ALL`` or ``NONE``), by the split of each; of the only one if it is None.

    Raises ``DataError`` if there are several and none is named, or if ``source`` does not have the one that is named.
    """
    counts = Counter(splits.values())
    if wanted == ALL or (wanted is None and len(counts) <= 1):
        return list(splits)
    listed = describe_splits(counts)
    if wanted is None:
        raise DataError(f"{source} has several splits: {listed}; choose one with --split, or --split {ALL}")
    name = None if wanted == NONE else split_of_name(wanted) if _is_plain(wanted) else wanted.lower()
    found = [name] if name in counts else [split for split in counts if name and split and split_of_name(split) == name]
    if len(found) != 1:
        raise DataError(f"{source} has {len(found) or 'no'} splits {wanted}; it has {listed}")
    return [file for file, split in splits.items() if split == found[0]]
