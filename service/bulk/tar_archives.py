"""WebDataset archives: files with the same key are one sample, such as ``000017.jpg`` and ``000017.cls``."""

from collections.abc import Iterator
from functools import partial
from tarfile import TarFile, TarInfo
from typing import BinaryIO

from fsspec import AbstractFileSystem

from models.data.tar_samples import DAMAGE, read_samples
from service.bulk.entries import Entry
from service.bulk.errors import BrokenImage
from service.imaging.formats import ACCEPTED_SUFFIXES

_CLASS = "cls"


class TarArchive:
    """The samples of one archive, compressed or not, in its order.

    A key is that of WebDataset: the path up to the first dot of the file's name. A label is the integer in ``cls``, which
    is optional. Samples after damage in an archive are lost; this is recorded under the archive's name.
    """

    def __init__(self, files: AbstractFileSystem, name: str) -> None:
        self.name = name
        self._system = files

    def count(self) -> int:
        """Number of samples; reads the whole archive."""
        return sum(1 for _ in self.entries(0))

    def entries(self, start: int) -> Iterator[Entry]:
        """See ``Part``. A sample without exactly one image is recorded as broken."""
        with self._system.open(self.name, "rb", block_size=1 << 20) as stream:
            for number, entry in enumerate(self._samples(stream)):
                if number >= start:
                    yield entry

    def _samples(self, stream: BinaryIO) -> Iterator[Entry]:
        try:
            for key, files in read_samples(stream, _content, mode="r|*"):
                yield _entry(key, files)
        except DAMAGE as error:
            yield Entry(self.name, None, partial(_refuse, f"the archive ends here: {error}"))


def _content(archive: TarFile, member: TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()


def _entry(key: str, files: list[tuple[str, bytes]]) -> Entry:
    images = [content for suffix, content in files if f".{suffix.rpartition('.')[2]}" in ACCEPTED_SUFFIXES]
    classes = [content for suffix, content in files if suffix == _CLASS]
    try:
        label = int(classes[0]) if classes else None
    except ValueError:
        return Entry(key, None, partial(_refuse, f"its class is no whole number: {classes[0][:20]!r}"))
    if len(images) != 1:
        reason = f"{len(images)} images in one sample, which has {sorted(suffix for suffix, _ in files)}"
        return Entry(key, label, partial(_refuse, reason))
    return Entry(key, label, partial(bytes, images[0]))


def _refuse(reason: str) -> bytes:
    raise BrokenImage(reason)
