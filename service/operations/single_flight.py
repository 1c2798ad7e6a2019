"""Single-flight: concurrent requests for the same image compute it once."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Computations in progress by key, in one event loop.

    A computation is a future. It ends with a result; with None where it failed for a reason of that caller's own; with an
    exception that every waiter would meet as well; or cancelled where its caller was, so that a waiter may start anew.
    """

    def __init__(self) -> None:
        self._running: dict[bytes, asyncio.Future[T | None]] = {}

    def get_or_start(self, key: bytes) -> asyncio.Future[T | None] | None:
        """The computation of a key in progress. None if there was none: the caller computes it and calls ``finish``."""
        running = self._running.get(key)
        if running is None:
            self._running[key] = asyncio.get_running_loop().create_future()
        return running

    def finish(
        self, key: bytes, *, result: T | None = None, error: Exception | None = None, abandoned: bool = False
    ) -> None:
        """Ends the caller's own computation and wakes its waiters."""
        future = self._running.pop(key)
        if abandoned:
            future.cancel()
        elif error is not None:
            future.set_exception(error)
            future.exception()  # nobody may be waiting for it
        else:
            future.set_result(result)

    def __len__(self) -> int:
        return len(self._running)
