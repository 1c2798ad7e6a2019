"""Files that are either whole or not there: written beside their place, synced, renamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

__all__ = ["PARTIAL_SUFFIX", "write_whole"]

PARTIAL_SUFFIX = ".partial"
"""Of the names that files have until they are whole; a process that was killed may leave one."""


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls ``write`` on a new file that takes the place of ``path`` only once all of it is on the disk.

    Whatever goes wrong before that, a full disk or a kill, leaves the previous file as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
