"""Tar headers that report damage instead of ending the archive."""

from __future__ import annotations

import tarfile
from typing import Self


class StrictTarInfo(tarfile.TarInfo):
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
