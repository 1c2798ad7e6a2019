"""A local file system that reads named pipes, so that a reader blocks.

A module of its own, as processes elsewhere import it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

__all__ = ["WaitingFiles"]


class WaitingFiles(LocalFileSystem):  # type: ignore[misc]
    """fsspec's own asks a file for its size, which a pipe does not have."""

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        if Path(path).is_fifo():
            return Path(path).read_bytes()
        content: bytes = super().cat_file(path, start, end, **options)
        return content
