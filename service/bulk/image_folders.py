"""A folder of image files; subfolders are classes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import PurePosixPath

from fsspec import AbstractFileSystem

from models.data.image_folder import class_folders, class_of
from service.bulk.entries import Entry
from service.bulk.errors import BrokenImage


class ImageFolder:
    """The images of a folder and its subfolders, sorted by path. ``paths`` are relative to ``name``, with slashes.

    A key is the path without its suffix, or with it if two files differ in the suffix alone. A label is the index, by
    name, of the topmost folder that contains images directly; an image outside of such folders has no label.
    """

    def __init__(self, files: AbstractFileSystem, name: str, paths: Sequence[str]) -> None:
        self.name = name
        self._system = files
        in_folders = class_folders(paths)
        self.classes: tuple[str, ...] = tuple(sorted(in_folders))
        labels: dict[str | None, int] = {folder: label for label, folder in enumerate(self.classes)}
        stems = {path: str(PurePosixPath(path).with_suffix("")) for path in sorted(paths)}
        shared = Counter(stems.values())
        self._files = [
            (path, _text(path if shared[stem] > 1 else stem), labels.get(class_of(path, in_folders)))
            for path, stem in stems.items()
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


def _text(key: str) -> str:
    """A key in valid UTF-8: other bytes of a file name are written as escapes."""
    return key.encode(errors="surrogateescape").decode(errors="backslashreplace")
