"""WebDataset archives: files with the same key are one sample, such as ``000017.jpg`` and ``000017.cls``."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from tarfile import TarFile, TarInfo
from typing import BinaryIO

from fsspec import AbstractFileSystem

from models.data.tar_samples import DAMAGE, Extent, decompressed, read_samples
from service.bulk.entries import Entry, Label, LabelType, integer_label
from service.bulk.errors import BrokenImage
from service.bulk.keys import FileKeys, UniqueKeys, refuse
from service.imaging.formats import ACCEPTED_SUFFIXES

_CLASS = "cls"
_SAMPLES_TO_JUDGE = 64

Content = Callable[[], bytes]
"""The bytes of a file; raises ``BrokenImage``."""
Files = list[tuple[str, Content]]
"""A sample's files: suffix and content."""


class TarArchive:
    """The samples of one archive, compressed or not, in its order.

    A key is that of WebDataset: the path up to the first dot of the file's name. The image is the file with one of
    ``extensions``, by default the one with an extension of images, without further dots if several have one. A label is
    the content of ``cls``, which is optional, as ``labels`` says: integer, text, or None for no labels. Samples after
    damage in an archive are lost; this is recorded under the archive's name.
    """

    def __init__(
        self,
        system: AbstractFileSystem,
        name: str,
        keys: FileKeys,
        *,
        labels: LabelType = "integer",
        extensions: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self._system = system
        self._keys = keys
        self._labels = labels
        self._extensions = extensions

    def count(self) -> int:
        """Number of samples; reads the whole archive."""
        return sum(1 for _ in self._samples())

    def entries(self, start: int) -> Iterator[Entry]:
        """See ``Part``. A sample without exactly one image is recorded as broken."""
        unique = UniqueKeys(self._keys)
        for number, (key, files) in enumerate(self._samples()):
            if files is None:
                entry = Entry(self.name, None, partial(refuse, key))
            else:
                entry = self._entry(unique, key, number, files)
            if number >= start:
                yield entry

    def label_type(self) -> LabelType:
        """Text if ``cls`` is no integer in one of the first samples; integer otherwise, also for an archive without it.

        Raises ``OSError``.
        """
        for _, files in islice(self._samples(), _SAMPLES_TO_JUDGE):
            for suffix, content in files or ():
                if suffix == _CLASS and not _is_integer(content):
                    return "text"
        return "integer"

    def _samples(self) -> Iterator[tuple[str, Files | None]]:
        """Key and files; at damage the reason and None."""
        with self._system.open(self.name, "rb", block_size=1 << 20) as stream:
            try:
                yield from read_samples(decompressed(stream, self.name), _content, mode="r|*", follow=self._follow)
            except DAMAGE as error:
                yield f"the archive ends here: {error}", None

    def _follow(self, target: Extent | None) -> Content:
        if target is None:
            return partial(refuse, "its image is a link to nothing before it in the archive")
        if not self.name.lower().endswith(".tar"):
            return partial(refuse, "its image is a link, which is not followed in a compressed archive")
        return partial(self._read, *target)

    def _read(self, offset: int, size: int) -> bytes:
        stream: BinaryIO
        with self._system.open(self.name, "rb") as stream:
            stream.seek(offset)
            return stream.read(size)

    def _entry(self, unique: UniqueKeys, key: str, number: int, files: Files) -> Entry:
        label: Label = None
        try:
            if self._labels is not None:
                label = next((self._label(content()) for suffix, content in files if suffix == _CLASS), None)
            image = self._image(files)
        except BrokenImage as error:
            image = partial(refuse, str(error))
        return unique.entry(key, number, label, image)

    def _image(self, files: Files) -> Content:
        if self._extensions:
            images = [content for suffix, content in files if suffix in self._extensions]
        else:
            able = {suffix: content for suffix, content in files if _is_image(suffix)}
            images = [content for suffix, content in able.items() if "." not in suffix] or list(able.values())
        if len(images) == 1:
            return images[0]
        hint = ": choose one with --image-extension" if images else ""
        found = f"which has {sorted(suffix for suffix, _ in files)}"
        raise BrokenImage(f"{len(images)} images in one sample, {found}{hint}")

    def _label(self, content: bytes) -> Label:
        try:
            text = content.decode()
            return integer_label(text) if self._labels == "integer" else text.strip()
        except ValueError:
            expected = "whole number" if self._labels == "integer" else "text"
            raise BrokenImage(f"its class is no {expected}: {content[:20]!r}") from None


def _content(archive: TarFile, member: TarInfo) -> Content:
    file = archive.extractfile(member)
    return partial(bytes, b"" if file is None else file.read())


def _is_image(suffix: str) -> bool:
    return f".{suffix.rpartition('.')[2]}" in ACCEPTED_SUFFIXES


def _is_integer(content: Content) -> bool:
    try:
        int(content().decode())
    except BrokenImage:
        return True
    except ValueError:
        return False
    return True
