"""Samples of WebDataset tars: files with the same key, such as ``000017.jpg`` and ``000017.cls``."""

import gzip
import io
import posixpath
import tarfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Generic, Literal, Self, TypeVar, cast

T = TypeVar("T")

DAMAGE = (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error)
"""What reading a damaged or truncated archive raises."""

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst")

WAITING_SAMPLES, WAITING_BYTES = 1 << 16, 32 << 20
"""How far apart the files of a sample may be."""

_LINK_TARGETS = 1 << 16  # files before a link that it may lead to


def decompressed(stream: BinaryIO, name: str) -> io.BufferedIOBase:
    """The uncompressed bytes of an archive, compressed as its suffix says. Reading raises ``DAMAGE`` and ``OSError``."""
    if name.lower().endswith("gz"):
        return cast(io.BufferedIOBase, gzip.open(stream))
    if name.lower().endswith("zst"):
        return io.BufferedReader(_Zstandard(stream), 1 << 20)
    return cast(io.BufferedIOBase, stream)


class _Zstandard(io.RawIOBase):
    """A stream decompressed with Zstandard, with windows of at most 128 MiB."""

    def __init__(self, stream: BinaryIO) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._reader = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True, closefd=False)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        try:
            return self._reader.readinto(buffer)
        except self._error as error:
            raise tarfile.ReadError(f"damaged: {error}") from error


class _StrictTarInfo(tarfile.TarInfo):
    """A tar header parser that rejects damaged headers; ``tarfile`` treats them as the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """See ``TarInfo``. Raises ``tarfile.ReadError`` for anything but a header or the end mark."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf and not any(buf):  # a block of zeros is the end mark
                raise
            raise tarfile.ReadError(f"damaged or truncated: {error}") from error


Extent = tuple[int, int]
"""Offset and size of a file's content in the uncompressed archive, in bytes."""


def read_samples(
    stream: BinaryIO | io.BufferedIOBase,
    read: Callable[[tarfile.TarFile, tarfile.TarInfo], T],
    *,
    mode: Literal["r:", "r|*"],
    follow: Callable[[Extent | None], T] | None = None,
    waiting_bytes: int = WAITING_BYTES,
) -> Iterator[tuple[str, list[tuple[str, T]]]]:
    """The samples of an archive, in the order of their first files: key, and (suffix, what ``read`` returns) of each file.

    The key is the path up to the first dot of the file's name, the suffix what follows it, in lower case. Hidden files and
    those in hidden folders are skipped. A link has what ``follow`` returns for the file before it that it leads to, or None
    for any other target; without ``follow`` links are skipped. Files of a sample need not be adjacent: it is returned when
    ``WAITING_SAMPLES`` or ``waiting_bytes`` follow its first file. A second file of the same suffix begins a new sample.

    ``mode``: ``r:`` for a seekable, uncompressed stream, of which only headers are read; ``r|*`` for others. Raises one of
    ``DAMAGE`` after the samples before it.
    """
    waiting, targets, damage = _Waiting[T](waiting_bytes), OrderedDict[str, Extent](), None
    try:
        with tarfile.open(fileobj=stream, mode=mode, tarinfo=_StrictTarInfo) as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # which otherwise grows with the archive
                extent = _extent(member, targets)
                folder, slash, file = member.name.removeprefix("./").rpartition("/")
                if _is_hidden(member.name):
                    continue
                stem, _, suffix = file.partition(".")
                key = f"{folder}{slash}{stem}"
                if member.isreg():
                    waiting.add(key, suffix.lower(), read(archive, member), member.size)
                elif (member.issym() or member.islnk()) and follow is not None:
                    waiting.add(key, suffix.lower(), follow(extent), 0)
                while waiting.is_full:
                    yield waiting.first()
    except DAMAGE as error:
        damage = error
    while waiting:
        yield waiting.first()
    if damage is not None:
        raise damage


def _is_hidden(name: str) -> bool:
    if not (name.startswith(".") or "/." in name or "__MACOSX" in name):
        return False  # as most are
    parts = name.split("/")
    return "__MACOSX" in parts or any(part.startswith(".") and part not in (".", "..") for part in parts)


def _extent(member: tarfile.TarInfo, targets: OrderedDict[str, Extent]) -> Extent | None:
    """Where the content of a file or link is, which is remembered for links to it."""
    name, extent = posixpath.normpath(member.name), None
    if member.isreg():
        extent = member.offset_data, member.size
    elif member.islnk():
        extent = targets.get(posixpath.normpath(member.linkname))
    elif member.issym():
        extent = targets.get(posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname)))
    if extent is not None:
        targets[name] = extent
        if len(targets) > _LINK_TARGETS:
            targets.popitem(last=False)
    return extent


@dataclass
class _Sample(Generic[T]):
    key: str
    files: list[tuple[str, T]] = field(default_factory=list)
    size: int = 0


class _Waiting(Generic[T]):
    """Samples whose files may not all have been read."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._samples = OrderedDict[int, _Sample[T]]()  # by number
        self._numbers = dict[str, int]()  # of samples to which files can still be added
        self._next = 0
        self._size = 0

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def is_full(self) -> bool:
        """Whether the first sample has waited long enough."""
        return len(self._samples) > 1 and (self._size > self._limit or len(self._samples) > WAITING_SAMPLES)

    def add(self, key: str, suffix: str, content: T, size: int) -> None:
        """Adds a file to its sample."""
        sample = self._samples.get(self._numbers.get(key, -1))
        if sample is None or any(suffix == other for other, _ in sample.files):
            sample = self._samples[self._next] = _Sample(key)
            self._numbers[key] = self._next
            self._next += 1
        sample.files.append((suffix, content))
        sample.size += size
        self._size += size

    def first(self) -> tuple[str, list[tuple[str, T]]]:
        """Removes the first sample."""
        number, sample = self._samples.popitem(last=False)
        self._size -= sample.size
        if self._numbers.get(sample.key) == number:
            del self._numbers[sample.key]
        return sample.key, sample.files
