"""Tar archives of which a damaged header is no end."""

from __future__ import annotations

import tarfile
from typing import Self

__all__ = ["StrictTarInfo"]


class StrictTarInfo(tarfile.TarInfo):
    """A header that must be whole: ``tarfile`` takes a damaged one for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """See ``TarInfo``. Raises ``tarfile.ReadError`` for anything but a header or the end mark."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf and not any(buf):  # a block of zeros is the end mark
                raise
            raise tarfile.ReadError(f"damaged or cut off: {error}") from error
