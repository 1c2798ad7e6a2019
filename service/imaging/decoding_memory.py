"""The memory that images may take together while threads decode them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["DecodingMemory"]


class DecodingMemory:
    """``max_bytes`` for the threads of one process. An image that needs more than all of it is decoded alone.

    A thread waits for its image's memory, in the order in which threads came, while it holds none; who holds some waits for
    nothing. So everybody's turn comes.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = self._free = max_bytes
        self._changed = threading.Condition()
        self._turn = threading.Lock()

    @contextmanager
    def lease(self) -> Iterator[Callable[[int], None]]:
        """Gives a function that takes bytes, to be called once at most; they are given back when the block ends."""
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            count = min(count, self._max_bytes)
            with self._turn, self._changed:
                self._changed.wait_for(lambda: self._free >= count)
                self._free -= count
                taken = count

        try:
            yield take
        finally:
            with self._changed:
                self._free += taken
                self._changed.notify_all()
