"""Blocks of memory for the images of a batch: many threads write rows, one device reads them in place.

::

    claim a row ─> write pixels ─> written    decoding threads, while the device runs another block
    wait for writers ─> compact               the thread that takes the block as a batch
    release                                   when the last row has its result

A block in shared memory is a memfd: unlike files in ``/dev/shm``, it is not limited to a container's 64 MB default.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.uint8]
COUNTER_BYTES = np.dtype(np.int64).itemsize


class Block:
    """``rows`` uint8 [capacity, S, S, 3], each with an owner or None. The engine's lock guards all attributes; the pixels
    of a row belong to the thread that claimed it until it calls ``written``. ``unanswered`` rows have no result yet.
    ``latents``: whether the result of its rows are latents instead of ids.
    """

    def __init__(self, number: int, capacity: int, row_shape: tuple[int, ...], *, shared: bool) -> None:
        self.number = number
        shape = (capacity, *row_shape)
        self.descriptor: int | None = None
        if shared:
            self.descriptor = os.memfd_create(f"titok-block-{number}", os.MFD_CLOEXEC)
            os.ftruncate(self.descriptor, int(np.prod(shape)))
            self.rows = map_rows(self.descriptor, shape)
        else:
            self.rows = np.empty(shape, np.uint8)
        self.owners: list[Any | None] = []
        self.writing = 0
        self.unanswered = 0
        self.latents = False
        self._released: list[int] = []

    @property
    def capacity(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def is_unused(self) -> bool:
        """Whether no row has an owner, or is being written."""
        return len(self.owners) == len(self._released) and not self.writing

    @property
    def has_free_row(self) -> bool:
        """Whether a row can be claimed."""
        return bool(self._released) or len(self.owners) < self.capacity

    def claim(self, owner: Any) -> int:
        """Claims a row to write: after the last one if there is room, else one that was released."""
        self.writing += 1
        if len(self.owners) < self.capacity:
            self.owners.append(owner)
            return len(self.owners) - 1
        row = self._released.pop()
        self.owners[row] = owner
        return row

    def written(self) -> None:
        """Records that a claimed row holds its pixels."""
        self.writing -= 1

    def release(self, row: int) -> None:
        """Frees a row whose image is not needed any more."""
        if self.owners[row] is not None:
            self.owners[row] = None
            self._released.append(row)

    def compact(self) -> list[Any]:
        """Moves the rows that have owners to the front, in order; returns the owners."""
        owners: list[Any] = []
        for row, owner in enumerate(self.owners):
            if owner is None:
                continue
            if row != len(owners):
                self.rows[len(owners)] = self.rows[row]
            owners.append(owner)
        self.owners, self._released = list(owners), []
        self.unanswered = len(owners)
        return owners

    def clear(self) -> None:
        """Frees every row."""
        self.owners, self._released, self.unanswered = [], [], 0

    def close(self) -> None:
        """Closes the descriptor; the memory is freed with the last array that maps it."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class BlockPool:
    """Reuses blocks; allocates one only while all others are in use."""

    def __init__(self, *, shared: bool) -> None:
        self._shared = shared
        self._free: list[Block] = []
        self._all: list[Block] = []

    def acquire(self, capacity: int, row_shape: tuple[int, ...]) -> Block:
        """Returns an empty block of at least that capacity."""
        for position, block in enumerate(self._free):
            if block.capacity >= capacity and block.rows.shape[1:] == row_shape:
                return self._free.pop(position)
        block = Block(len(self._all), capacity, row_shape, shared=self._shared)
        self._all.append(block)
        return block

    def release(self, block: Block) -> None:
        """Returns a block to the pool."""
        block.clear()
        self._free.append(block)

    def close(self) -> None:
        """Closes all blocks."""
        for block in self._all:
            block.close()

    @property
    def size(self) -> int:
        """Blocks allocated so far."""
        return len(self._all)


def map_rows(descriptor: int, shape: tuple[int, ...], pin: Callable[[Rows], object] | None = None) -> Rows:
    """Maps the memory of a descriptor as uint8 of ``shape``; the mapping lives as long as the array."""
    rows = np.frombuffer(mmap.mmap(descriptor, int(np.prod(shape))), np.uint8).reshape(shape)
    if pin is not None:
        pin(rows)
    return rows


def map_counter(descriptor: int) -> npt.NDArray[np.int64]:
    """Maps the ``COUNTER_BYTES`` of a descriptor as int64 [1]."""
    return map_rows(descriptor, (COUNTER_BYTES,)).view(np.int64)
