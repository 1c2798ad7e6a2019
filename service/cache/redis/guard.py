"""Calls to a server that nobody waits for longer than agreed, and that is left alone while it does not answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.cache.protocol import CacheObserver
from service.cache.redis.circuit_breaker import CircuitBreaker

__all__ = ["TimedCalls"]

T = TypeVar("T")

_TURNS_OF_GRACE = 8


class TimedCalls:
    """Runs each call in a task of its own, and tells ``breaker`` and ``observer`` how it went."""

    def __init__(self, breaker: CircuitBreaker, observer: CacheObserver) -> None:
        self._breaker = breaker
        self._observer = observer
        self._tasks: set[asyncio.Task[Any]] = set()

    async def call(self, op: str, command: Awaitable[T], seconds: float) -> T | None:
        """The answer, or None where there is none, or not in time."""
        started = time.perf_counter()
        task = self.begin(_awaited(command))
        await asyncio.wait({task}, timeout=seconds)
        # A busy event loop looks at its clock before it hands out what has arrived: give it a few turns to do so.
        for _ in range(_TURNS_OF_GRACE):
            if task.done():
                break
            await asyncio.sleep(0)
        try:
            if not task.done():
                # It is left to end by the client's own time-out: a connection is never abandoned with an answer due.
                raise TimeoutError  # noqa: TRY301
            answer = task.result()
        except Exception as error:  # whatever a client library may raise, a request does not fail of it
            self._observer.failed(op, _reason(error))
            self._breaker.failed()
            return None
        self._observer.finished(op, time.perf_counter() - started)
        self._breaker.succeeded()
        return answer

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Runs what nobody waits for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._end)
        return task

    async def close(self, seconds: float) -> None:
        """Lets what was begun finish, for ``seconds`` at most."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # told where it was awaited; a late one is of no interest


async def _awaited(command: Awaitable[T]) -> T:
    return await command


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError | RedisTimeoutError):
        return "timeout"
    return "connection" if isinstance(error, RedisConnectionError | OSError) else "response"
