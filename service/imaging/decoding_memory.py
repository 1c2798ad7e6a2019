"""Memory limit for images that are being decoded in parallel."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class DecodingMemory:
    """A memory budget of ``max_bytes`` for the decoding threads of one process, first come, first served.

    An image that needs more than the whole budget is decoded while no other is. A thread that waits holds no memory, so
    threads cannot deadlock.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = self._free = max_bytes
        self._changed = threading.Condition()
        self._order = threading.Lock()

    @contextmanager
    def lease(self) -> Iterator[Callable[[int], None]]:
        """A function that reserves bytes, to be called at most once; they are released when the block ends."""
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            count = min(count, self._max_bytes)
            with self._order, self._changed:
                self._changed.wait_for(lambda: self._free >= count)
                self._free -= count
                taken = count

        try:
            yield take
        finally:
            with self._changed:
                self._free += taken
                self._changed.notify_all()
