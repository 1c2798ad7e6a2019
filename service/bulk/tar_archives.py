"""WebDataset archives: files with the same key are one sample, such as ``000017.jpg`` and ``000017.cls``."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO

from fsspec import AbstractFileSystem

from models.data.strict_tar import StrictTarInfo
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
        key, sample = "", dict[str, bytes]()
        try:
            with tarfile.open(fileobj=stream, mode="r|*", tarinfo=StrictTarInfo) as archive:
                for member in archive:
                    if not member.isreg() or "/__MACOSX/" in f"/{member.name}":
                        continue
                    member_key, suffix = _split(member.name)
                    if member_key != key and sample:
                        yield _entry(key, sample)
                        sample = {}
                    content = archive.extractfile(member)
                    key = member_key
                    sample[suffix] = b"" if content is None else content.read()
        except (tarfile.TarError, EOFError, zlib.error) as error:
            if sample:
                yield _entry(key, sample)
            yield Entry(self.name, None, partial(_refuse, f"the archive ends here: {error}"))
            return
        if sample:
            yield _entry(key, sample)


def _split(path: str) -> tuple[str, str]:
    folder, slash, file = path.removeprefix("./").rpartition("/")
    stem, _, suffix = file.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def _entry(key: str, sample: dict[str, bytes]) -> Entry:
    images = [content for suffix, content in sample.items() if f".{suffix.rpartition('.')[2]}" in ACCEPTED_SUFFIXES]
    try:
        label = int(sample[_CLASS]) if _CLASS in sample else None
    except ValueError:
        return Entry(key, None, partial(_refuse, f"its class is no whole number: {sample[_CLASS][:20]!r}"))
    if len(images) != 1:
        return Entry(key, label, partial(_refuse, f"{len(images)} images in one sample, which has {sorted(sample)}"))
    read: Callable[[], bytes] = partial(bytes, images[0])
    return Entry(key, label, read)


def _refuse(reason: str) -> bytes:
    raise BrokenImage(reason)
