"""Arrays that may not fit into memory: rows are written to a temporary file, which is then mapped."""

import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError


class Spool:
    """Collects rows in an unnamed file in ``folder``, which disappears with the last array that is mapped from it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        with self._explained():
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by the next line
            weakref.finalize(self, self._file.close)

    def append(self, rows: NDArray[Any]) -> None:
        """Adds rows [B, ...], which always have the same dtype and shape. Raises ``DataError`` if the disk is full."""
        with self._explained():
            self._file.write(np.ascontiguousarray(rows).data)
        self._count += len(rows)
        self._row = rows.dtype, rows.shape[1:]

    def array(self) -> NDArray[Any]:
        """All rows [N, ...], mapped copy-on-write; nothing can be added afterwards. Raises ``DataError`` without rows."""
        if not self._count:
            raise DataError("there are no images")
        dtype, shape = self._row
        with self._explained(), self._file as file:
            file.flush()
            return np.memmap(file, dtype, mode="c", shape=(self._count, *shape))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise DataError(f"cannot write to {self._folder}: {reason}; choose another cache folder") from error
