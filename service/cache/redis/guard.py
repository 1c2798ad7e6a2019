"""Calls to Redis with a time limit and a circuit breaker, so that a slow or absent Redis delays no request further."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.cache.protocol import CacheFailure, CacheObserver, CacheOp
from service.cache.redis.circuit_breaker import CircuitBreaker
from service.cache.redis.connection import RedisClient, disconnect

T = TypeVar("T")

SOCKET_TIMEOUT = 1.0
"""Seconds after which the client closes a connection that does not answer. Callers stop waiting long before that."""

_EXTRA_LOOP_ITERATIONS = 8


class RedisGuard:
    """Runs commands on ``client``, each in a task of its own, and reports the outcome to a breaker and ``observer``.

    A caller waits for at most ``timeout`` seconds. After that the command still ends by the client's own time-out, so no
    connection is abandoned while an answer is due.
    """

    def __init__(
        self, client: RedisClient, *, timeout: float, observer: CacheObserver | None = None, breaker_pause: float = 1.0
    ) -> None:
        self.client = client
        self._timeout = timeout
        self._observer = observer or CacheObserver()
        self._breaker = CircuitBreaker(pause=breaker_pause, on_change=self._observer.breaker)
        self._tasks: set[asyncio.Future[Any]] = set()

    def is_available(self) -> bool:
        """Whether the circuit is closed. Starts a probe in the background if one is due."""
        if self._breaker.wants_probe():
            self.start(self.call("probe", self.client.ping()))
        return self._breaker.state == "closed"

    async def call(self, op: CacheOp, command: Awaitable[T], *, timeout_factor: float = 1.0) -> T | None:
        """The answer of ``command``; None if it failed or took longer than the timeout times ``timeout_factor``."""
        started = time.perf_counter()
        task = self.start(command)
        await asyncio.wait({task}, timeout=self._timeout * timeout_factor)
        # A busy event loop handles timers before the data that has arrived: let it read that data.
        for _ in range(_EXTRA_LOOP_ITERATIONS):
            if task.done():
                break
            await asyncio.sleep(0)
        try:
            if not task.done():
                raise TimeoutError  # noqa: TRY301
            answer = task.result()
        except Exception as error:  # whatever the client library raises must not fail a request
            self._observer.failed(op, _reason(error))
            self._breaker.record_failure()
            return None
        self._observer.finished(op, time.perf_counter() - started)
        self._breaker.record_success()
        return answer

    def start(self, work: Awaitable[T]) -> asyncio.Future[T]:
        """Runs ``work`` in a background task, until ``close`` at most."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._discard)
        return task

    async def close(self) -> None:
        """Waits a bounded time for running commands, cancels the others, and closes the connections."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2 * SOCKET_TIMEOUT)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await disconnect(self.client)

    def _discard(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as retrieved; after a time-out nobody else would


def _reason(error: Exception) -> CacheFailure:
    if isinstance(error, TimeoutError | RedisTimeoutError):
        return "timeout"
    return "connection" if isinstance(error, RedisConnectionError | OSError) else "response"
