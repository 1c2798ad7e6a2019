"""Memory for the images of a batch: rows that many threads fill, and one device reads where they are.

::

    claim row ─> write it ─> written         decoding threads, while the device is busy with another block
    close ─> wait for writers ─> compact     the thread that takes the block
    release                                  when its last row has been answered

A block in shared memory is a memfd, not a file of ``/dev/shm``, whose size a container limits to 64 MB by default.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["COUNTER_BYTES", "Block", "BlockPool", "Rows", "map_counter", "map_rows"]

Rows = npt.NDArray[np.uint8]
COUNTER_BYTES = np.dtype(np.int64).itemsize


class Block:
    """``rows`` uint8 [capacity, S, S, 3], and what each of them is for. Its members are guarded by the engine's lock;
    a row's pixels belong to the one thread that claimed it, until it says they are written. ``live`` rows are for
    somebody, ``unanswered`` ones are with a worker or on the way to one.
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
        self.live = 0
        self.writing = 0
        self.unanswered = 0
        self._holes: list[int] = []

    @property
    def capacity(self) -> int:
        """Rows it can hold."""
        return len(self.rows)

    @property
    def has_room_at_end(self) -> bool:
        """Whether a row after the last one can be claimed."""
        return len(self.owners) < self.capacity

    @property
    def has_holes(self) -> bool:
        """Whether a row was given up that can be claimed again."""
        return bool(self._holes)

    @property
    def is_full(self) -> bool:
        """Whether every row is for somebody."""
        return self.live == self.capacity

    def claim(self, owner: Any) -> int:
        """A row for ``owner`` to write, after the last one if there is room, or one that was given up."""
        self.writing += 1
        self.live += 1
        if self.has_room_at_end:
            self.owners.append(owner)
            return len(self.owners) - 1
        row = self._holes.pop()
        self.owners[row] = owner
        return row

    def written(self) -> None:
        """A claimed row holds its pixels."""
        self.writing -= 1

    def give_up(self, row: int) -> None:
        """A row is for nobody any more."""
        if self.owners[row] is not None:
            self.owners[row] = None
            self._holes.append(row)
            self.live -= 1

    def compact(self) -> list[Any]:
        """Moves the rows that are for somebody to the front, in order; gives their owners."""
        owners: list[Any] = []
        for row, owner in enumerate(self.owners):
            if owner is None:
                continue
            if row != len(owners):
                self.rows[len(owners)] = self.rows[row]
            owners.append(owner)
        self.owners, self._holes = list(owners), []
        self.live = self.unanswered = len(owners)
        return owners

    def clear(self) -> None:
        """Makes every row free."""
        self.owners, self._holes = [], []
        self.live = self.unanswered = 0

    def close(self) -> None:
        """Gives the memory back once nobody looks at it any more."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class BlockPool:
    """Blocks that are used again; a new one is made only while all others are in use."""

    def __init__(self, *, shared: bool) -> None:
        self._shared = shared
        self._free: list[Block] = []
        self._all: list[Block] = []

    def take(self, capacity: int, row_shape: tuple[int, ...]) -> Block:
        """An empty block of at least that capacity."""
        for position, block in enumerate(self._free):
            if block.capacity >= capacity and block.rows.shape[1:] == row_shape:
                return self._free.pop(position)
        block = Block(len(self._all), capacity, row_shape, shared=self._shared)
        self._all.append(block)
        return block

    def give(self, block: Block) -> None:
        """Takes a block back."""
        block.clear()
        self._free.append(block)

    def close(self) -> None:
        """Closes all blocks."""
        for block in self._all:
            block.close()

    @property
    def size(self) -> int:
        """Blocks that were ever made."""
        return len(self._all)

    @property
    def in_use(self) -> int:
        """Blocks that hold rows, or are about to."""
        return len(self._all) - len(self._free)


def map_rows(descriptor: int, shape: tuple[int, ...], pin: Callable[[Rows], object] | None = None) -> Rows:
    """The memory behind a file descriptor as uint8 of ``shape``; it lives as long as the array."""
    rows = np.frombuffer(mmap.mmap(descriptor, int(np.prod(shape))), np.uint8).reshape(shape)
    if pin is not None:
        pin(rows)
    return rows


def map_counter(descriptor: int) -> npt.NDArray[np.int64]:
    """The ``COUNTER_BYTES`` behind a file descriptor as int64 [1]."""
    return map_rows(descriptor, (COUNTER_BYTES,)).view(np.int64)
