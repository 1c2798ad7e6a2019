"""Images being computed now: who asks for the same one meanwhile waits for it instead of computing it again."""

from __future__ import annotations

import asyncio
import time
from typing import Generic, TypeVar

from service.http.problems import Problem

__all__ = ["Flight", "Flights"]

T = TypeVar("T")


class Flight(Generic[T]):
    """One computation. Ended, it has a ``result``, a ``problem`` that every waiter would run into as well, or neither:
    ``abandoned`` by a caller who went away, so that another may begin anew, or failed for a reason of that caller's own.
    """

    def __init__(self) -> None:
        self._ended = asyncio.Event()
        self.result: T | None = None
        self.problem: Problem | None = None
        self.abandoned = False

    async def wait(self, deadline: float) -> bool:
        """Waits until it has ended; False if the deadline (monotonic) came first."""
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await self._ended.wait()
        except TimeoutError:
            return False
        return True

    def end(self) -> None:
        """Wakes those who wait."""
        self._ended.set()


class Flights(Generic[T]):
    """Flights by key, in one event loop."""

    def __init__(self) -> None:
        self._flights: dict[bytes, Flight[T]] = {}

    def join(self, key: bytes) -> Flight[T] | None:
        """The flight of a key to wait for; None if there was none: then it is the caller's, who has to ``land`` it."""
        flight = self._flights.get(key)
        if flight is None:
            self._flights[key] = Flight()
        return flight

    def land(
        self, key: bytes, *, result: T | None = None, problem: Problem | None = None, abandoned: bool = False
    ) -> None:
        """Ends the caller's own flight."""
        flight = self._flights.pop(key)
        flight.result, flight.problem, flight.abandoned = result, problem, abandoned
        flight.end()

    def __len__(self) -> int:
        return len(self._flights)
