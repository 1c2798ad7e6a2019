"""Calls to Redis with a time limit and a circuit breaker, so that a slow or absent Redis delays no request further."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.cache.protocol import BreakerState, CacheFailure, CacheObserver, CacheOp
from service.cache.redis.circuit_breaker import CircuitBreaker
from service.cache.redis.connection import CONNECTIONS, connect, disconnect, drop_connections
from service.cache.redis.health import RedisHealth
from service.redis_url import RedisUrl

T = TypeVar("T")

SOCKET_TIMEOUT = 1.0
"""Seconds after which the client closes a connection that does not answer. Callers stop waiting long before that."""

_CONNECT_SECONDS = 5.0  # nobody waits for the first probe
_LOOP_ITERATIONS = 50  # connecting takes several round trips
_LATE_LOOP_ITERATIONS = 8


class RedisGuard:
    """Runs commands on the Redis at ``url``, each in a task of its own, for one ``purpose`` (which the log names).

    A caller waits for at most ``timeout`` seconds. After that the command still ends by the client's own time-out, so no
    connection is abandoned while an answer is due. When the circuit opens or the server refuses a command, all connections
    are replaced, because its name may belong to another server by now (a replica, for example, refuses writes).

    While the circuit is open or commands are refused, ``probe`` is sent every ``breaker_pause`` seconds: it should use the
    same commands. ``on_recovery`` is called when the circuit closes.
    """

    def __init__(
        self,
        url: str,
        purpose: str,
        *,
        timeout: float,
        probe: Callable[[], Awaitable[object]],
        observer: CacheObserver | None = None,
        breaker_pause: float = 1.0,
        on_recovery: Callable[[], None] = lambda: None,
    ) -> None:
        parsed = RedisUrl.parse(url)
        self.client = connect(url, socket_timeout=SOCKET_TIMEOUT)
        self.health = RedisHealth(purpose, parsed.words_of)
        self._timeout = timeout
        self._observer = observer or CacheObserver()
        self._pause = breaker_pause
        self._send_probe = probe
        self._on_recovery = on_recovery
        self._breaker = CircuitBreaker(self._on_breaker_change)
        self._slots = asyncio.Semaphore(parsed.options.get("max_connections", CONNECTIONS))
        self._tasks: set[asyncio.Future[Any]] = set()
        self._probing: asyncio.Future[None] | None = None
        self._next_replacement = 0.0

    @property
    def is_available(self) -> bool:
        """Whether the circuit is closed."""
        return self._breaker.state == "closed"

    def connect(self) -> None:
        """Connects in the background, and opens the circuit if that fails."""
        self._probing = self.start(self._connect())

    async def call(self, op: CacheOp, command: Callable[[], Awaitable[T]], *, limit: float | None = None) -> T | None:
        """The answer of ``command``; None if the circuit is open, or if it failed or took longer than ``limit`` seconds
        (default: the timeout).
        """
        if not self.is_available and op != "probe":
            return None
        limit = limit or self._timeout
        task = self.start(self._run(command))
        seconds = await _wait(task, limit)
        if not task.done():
            self._observer.failed(op, "timeout")
            if seconds > 2 * limit:
                # The event loop itself was late, which says nothing about Redis.
                task.add_done_callback(partial(self._record_late_failure, op))
            else:
                self._record_failure(op, TimeoutError(f"no answer within {1000 * limit:.0f} ms"))
            return None
        try:
            answer = task.result()
        except Exception as error:  # whatever the client library raises must not fail a request
            self._observer.failed(op, _reason(error))
            self._record_failure(op, error)
            return None
        self._observer.finished(op, seconds)
        self._breaker.record_success()
        self._record_answer(op, answer)
        return answer

    def start(self, work: Awaitable[T]) -> asyncio.Future[T]:
        """Runs ``work`` in a background task, until ``close`` at most."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._discard)
        return task

    async def close(self) -> None:
        """Waits a bounded time for running commands, cancels the others, and closes the connections."""
        if self._probing is not None:
            self._probing.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2 * SOCKET_TIMEOUT)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await disconnect(self.client)

    async def _run(self, command: Callable[[], Awaitable[T]]) -> T:
        async with self._slots:  # waits for a free connection, where the client would raise
            return await command()

    def _record_failure(self, op: CacheOp, error: BaseException) -> None:
        self.health.record_failure(op, error)
        self._breaker.record_failure()
        self._start_probing()
        if isinstance(error, ResponseError):
            self._replace_connections()

    def _record_late_failure(self, op: CacheOp, task: asyncio.Future[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._record_failure(op, error)

    def _record_answer(self, op: CacheOp, answer: object) -> None:
        """Looks for commands of a pipeline that the server refused."""
        refusals = [one for one in answer if _is_refusal(one)] if isinstance(answer, list) else []
        for _ in refusals:
            self._observer.failed(op, "response")
        if refusals:
            self.health.record_failure(op, refusals[0])
            self._replace_connections()
            self._start_probing()
        elif op == "probe":
            self.health.record_recovery()
        else:
            self.health.record_success(op)

    def _replace_connections(self) -> None:
        if time.monotonic() >= self._next_replacement:
            self._next_replacement = time.monotonic() + self._pause
            self.start(drop_connections(self.client))

    def _on_breaker_change(self, state: BreakerState) -> None:
        self._observer.breaker(state)
        if state == "closed":
            self._on_recovery()
        elif state == "open":
            self._replace_connections()

    def _start_probing(self) -> None:
        if self._probing is None or self._probing.done():
            self._probing = self.start(self._probe())

    async def _connect(self) -> None:
        if await self.call("probe", self._send_probe, limit=_CONNECT_SECONDS) is None and self.health.failure:
            self._breaker.open()
        await self._probe()

    async def _probe(self) -> None:
        """Sends probes until the circuit is closed and no command is refused."""
        while not self.is_available or self.health.failure:
            await asyncio.sleep(self._pause)
            if not self.is_available:
                self._breaker.start_probe()
            await self.call("probe", self._send_probe)

    def _discard(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as retrieved; after a time-out nobody else would


async def _wait(task: asyncio.Future[Any], limit: float) -> float:
    """Waits for a task. Returns the seconds that this took."""
    started = time.perf_counter()
    await asyncio.wait({task}, timeout=limit)
    # A busy event loop handles timers before the data that has arrived: let it read that data.
    for iteration in range(_LOOP_ITERATIONS):
        is_late = time.perf_counter() - started > 2 * limit
        if task.done() or (is_late and iteration >= _LATE_LOOP_ITERATIONS):
            break
        await asyncio.sleep(0)
    return time.perf_counter() - started


def _is_refusal(answer: object) -> bool:
    """Whether an answer is an error of the server, not one of a single key (of another type)."""
    return isinstance(answer, ResponseError) and not str(answer).startswith("WRONGTYPE")


def _reason(error: Exception) -> CacheFailure:
    if isinstance(error, TimeoutError | RedisTimeoutError):
        return "timeout"
    return "connection" if isinstance(error, RedisConnectionError | OSError) else "response"
