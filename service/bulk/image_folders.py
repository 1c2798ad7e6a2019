"""A folder of image files; subfolders are classes."""

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import PurePosixPath

from fsspec import AbstractFileSystem

from models.data.image_folder import class_folders, class_of
from service.bulk.entries import Entry
from service.bulk.errors import BrokenImage
from service.bulk.keys import FileKeys, UniqueKeys


class ImageFolder:
    """The images of a folder and its subfolders, sorted by path. ``paths`` are relative to ``name``, with slashes; their
    values are the paths without the folder of a split, or None for no labels.

    A key is the path without its suffix, or with it if two files differ in the suffix alone. A label is the index, by
    name, of the topmost folder that contains images directly; an image outside of such folders has no label.
    """

    def __init__(self, system: AbstractFileSystem, name: str, paths: Mapping[str, str | None]) -> None:
        self.name = name
        self._system = system
        in_folders = class_folders(path for path in paths.values() if path is not None)
        self.classes: tuple[str, ...] = tuple(sorted(in_folders))
        labels: dict[str | None, int] = {folder: label for label, folder in enumerate(self.classes)}
        stems = {path: str(PurePosixPath(path).with_suffix("")) for path in sorted(paths)}
        shared, unique = Counter(stems.values()), UniqueKeys(FileKeys(""))
        self._files = [
            (
                path,
                unique(path if shared[stem] > 1 else stem, number),
                labels.get(class_of(paths[path] or "", in_folders)),
            )
            for number, (path, stem) in enumerate(stems.items())
        ]

    def count(self) -> int:
        """Number of images."""
        return len(self._files)

    def entries(self, start: int) -> Iterator[Entry]:
        """See ``Part``."""
        for path, key, label in self._files[start:]:
            yield Entry(key, label, partial(self._read, path))

    def _read(self, path: str) -> bytes:
        try:
            data: bytes = self._system.cat_file(f"{self.name}/{path}")
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise BrokenImage(f"cannot be read: {error.strerror or type(error).__name__}") from None
        return data
