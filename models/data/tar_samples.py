"""Samples of WebDataset tars: files with the same key, such as ``000017.jpg`` and ``000017.cls``."""

import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Literal, Self, TypeVar

T = TypeVar("T")

DAMAGE = (tarfile.TarError, EOFError, zlib.error)
"""What reading a damaged or truncated archive raises."""


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


def read_samples(
    stream: BinaryIO, read: Callable[[tarfile.TarFile, tarfile.TarInfo], T], *, mode: Literal["r:", "r|*"]
) -> Iterator[tuple[str, list[tuple[str, T]]]]:
    """The samples of an archive, in its order: key, and (suffix, what ``read`` returns) of each file.

    The key is the path up to the first dot of the file's name, the suffix what follows it, in lower case. Hidden files are
    skipped. ``mode``: ``r:`` for a seekable, uncompressed stream, of which only headers are read; or ``r|*``. Raises one of
    ``DAMAGE`` after the samples before it.
    """
    key, sample, damage = "", list[tuple[str, T]](), None
    try:
        with tarfile.open(fileobj=stream, mode=mode, tarinfo=_StrictTarInfo) as archive:
            for member in archive:
                folder, slash, file = member.name.removeprefix("./").rpartition("/")
                if not member.isreg() or file.startswith(".") or "/__MACOSX/" in f"/{folder}/":
                    continue
                stem, _, suffix = file.partition(".")
                member_key = f"{folder}{slash}{stem}"
                if member_key != key and sample:
                    yield key, sample
                    sample = []
                key = member_key
                sample.append((suffix.lower(), read(archive, member)))
    except DAMAGE as error:
        damage = error
    if sample:
        yield key, sample
    if damage is not None:
        raise damage
