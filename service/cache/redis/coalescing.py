"""Shared round trips: calls that arrive while one is in progress share the next.

::

    call ─> waiting ─┐
    call ─> waiting ─┼─> one round trip at a time for all of them
    call ─> waiting ─┘

Callers never await Redis itself: a background task does, and callers await their results. So a cancelled request never
leaves a connection with an unread answer, which the next command would take for its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import islice
from typing import Generic, TypeVar

from service.cache.protocol import CacheOp
from service.cache.redis.guard import RedisGuard

K = TypeVar("K")
V = TypeVar("V")

_ITEMS_PER_ROUND_TRIP = 1000


class Coalescer(Generic[K, V]):
    """Calls ``run`` with the items of many callers; it returns ``values_per_item`` for each item, in order."""

    def __init__(
        self,
        guard: RedisGuard,
        op: CacheOp,
        run: Callable[[list[K]], Awaitable[Sequence[V]]],
        *,
        values_per_item: int = 1,
    ) -> None:
        self._guard = guard
        self._op = op
        self._run = run
        self._values_per_item = values_per_item
        self._waiting: deque[tuple[Sequence[K], asyncio.Future[list[V] | None]]] = deque()
        self._is_running = False

    async def call(self, items: Sequence[K]) -> list[V] | None:
        """The values of items; None if Redis did not answer. Waits for at most two round trips."""
        if not items or not self._guard.is_available:
            return None
        future: asyncio.Future[list[V] | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((items, future))
        if not self._is_running:
            self._is_running = True
            self._guard.start(self._serve())
        return await future

    async def _serve(self) -> None:
        """Answers calls, as many as fit in a round trip at a time, until none is left."""
        taken: list[tuple[Sequence[K], asyncio.Future[list[V] | None]]] = []
        try:
            while self._waiting:
                taken = self._take()
                items = [item for some, _ in taken for item in some]
                answer = await self._guard.call(self._op, partial(self._run, items))
                values = None if answer is None else iter(answer)
                for some, future in taken:
                    count = self._values_per_item * len(some)
                    _resolve(future, None if values is None else list(islice(values, count)))
        finally:
            self._is_running = False
            for _, future in (*taken, *self._waiting):  # if this task was cancelled
                _resolve(future, None)
            self._waiting.clear()

    def _take(self) -> list[tuple[Sequence[K], asyncio.Future[list[V] | None]]]:
        taken = [self._waiting.popleft()]
        count = len(taken[0][0])
        while self._waiting and (count := count + len(self._waiting[0][0])) <= _ITEMS_PER_ROUND_TRIP:
            taken.append(self._waiting.popleft())
        return taken


def _resolve(future: asyncio.Future[list[V] | None], values: list[V] | None) -> None:
    if not future.done():
        future.set_result(values)
