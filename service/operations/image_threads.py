"""The threads that decode and encode image files and parse large bodies. They pull calls from a queue of their own, so that
they do not depend on the event loop between two calls.

::

    event loop: map() ──> queued ──> thread ──> last call of a map() has ended ──> event loop, one wake-up
                            │           │
                            │           └─ reserve(): too little memory free ──> set aside, run again when there is
                            └─ deadline passed, or the caller has gone ──> dropped

A running call cannot be interrupted inside of a decoder. It keeps its thread and its memory until it ends, and ends at its
next ``check`` when nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from service.engine import DeadlineExceeded, EngineStopped, QueueFull

T = TypeVar("T")

# After this long without memory, a call is not overtaken any more by calls that need less.
_OVERTAKEN_SECONDS = 1.0
_RETRY_SECONDS = 1.0
_JOIN_SECONDS = 5.0


class _SetAsideError(Exception):
    """The call waits for memory, and is run again."""


class _StoppedError(Exception):
    """Nobody waits for the call any more."""


@dataclass(slots=True, eq=False)
class _Map:
    """The calls of one ``map``. Guarded by the lock of ``ImageThreads``, except ``deliver``, which the event loop calls."""

    function: Callable[..., Any]
    deadline: float
    future: asyncio.Future[None]
    results: list[Any]
    unfinished: int
    error: BaseException | None = None
    is_over: bool = False

    def deliver(self) -> None:
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(self.error)


@dataclass(slots=True, eq=False)
class _Call:
    of: _Map
    index: int
    arguments: Sequence[Any]
    num_bytes: int = 0
    has_memory: bool = False
    set_aside_at: float = 0.0


class ImageThreads:
    """Runs calls in at most ``num_threads`` threads, which are started by the first call. At most ``max_calls`` wait, and
    running ones reserve at most ``max_bytes`` together; one that needs more runs while no other has memory.
    """

    def __init__(self, num_threads: int, *, max_bytes: int, max_calls: int) -> None:
        self._num_threads = num_threads
        self._max_bytes = self._free_bytes = max_bytes
        self._max_calls = max_calls
        self._changed = threading.Condition()
        self._urgent: deque[_Call] = deque()
        self._queued: deque[_Call] = deque()
        self._set_aside: deque[_Call] = deque()
        self._threads: list[threading.Thread] = []
        self._running = threading.local()
        self._is_closed = False

    # --- called in the event loop ------------------------------------------------------------------------------------

    async def run(self, function: Callable[..., T], *args: Any, deadline: float) -> T:
        """One urgent call. Raises as ``map`` does."""
        return (await self.map(function, [args], deadline=deadline, urgent=True))[0]

    async def map(
        self, function: Callable[..., T], arguments: Sequence[Sequence[Any]], *, deadline: float, urgent: bool = False
    ) -> list[T]:
        """Calls in parallel, results in order. ``deadline`` is on ``time.monotonic``. ``urgent`` calls run before others.

        Raises the first failure, ``DeadlineExceeded`` or ``QueueFull``; then, and when it is cancelled, calls that have not
        started are dropped.
        """
        results: list[Any] = [None] * len(arguments)
        calls = _Map(function, deadline, asyncio.get_running_loop().create_future(), results, len(arguments))
        self._put([_Call(calls, index, given) for index, given in enumerate(arguments)], urgent=urgent)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await calls.future
        except TimeoutError:
            raise _late() from None
        finally:
            with self._changed:
                if not calls.is_over:
                    self._drop(calls)
            del calls  # else a cycle: its future holds the error, which holds this frame
        return results

    def close(self) -> None:
        """Fails the calls that wait, and joins the threads. A decoder that runs for longer is left to its thread."""
        with self._changed:
            self._is_closed = True
            for call in [*self._urgent, *self._queued, *self._set_aside]:
                self._fail(call.of, EngineStopped("the service has shut down"))
            self._changed.notify_all()
        until = time.monotonic() + _JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _put(self, calls: list[_Call], *, urgent: bool) -> None:
        with self._changed:
            if self._is_closed:
                raise EngineStopped("the service has shut down")
            waiting = len(self._urgent) + len(self._queued) + len(self._set_aside)
            if waiting and waiting + len(calls) > self._max_calls:
                message = f"The queue of images to decode or encode is full ({waiting} of {self._max_calls} images)"
                raise QueueFull(message, lane="images", limit=self._max_calls, retry_after=_RETRY_SECONDS)
            (self._urgent if urgent else self._queued).extend(calls)
            self._changed.notify(len(calls))
            while len(self._threads) < self._num_threads:
                thread = threading.Thread(target=self._work, name="image", daemon=True)
                self._threads.append(thread)
                thread.start()

    # --- called by the functions, in the threads ---------------------------------------------------------------------

    def reserve(self, num_bytes: int) -> None:
        """Reserves memory until the running call ends; a call reserves once. If there is too little, the call is ended by an
        exception, and repeated when there is enough.
        """
        call: _Call = self._running.call
        with self._changed:
            self.check()
            if call.has_memory:
                return
            call.num_bytes = min(num_bytes, self._max_bytes)
            now = time.monotonic()
            is_turn = not self._set_aside or now - self._set_aside[0].set_aside_at < _OVERTAKEN_SECONDS
            if call.num_bytes > self._free_bytes or not is_turn:
                call.set_aside_at = now
                self._set_aside.append(call)
                raise _SetAsideError
            self._claim(call)

    def check(self) -> None:
        """Ends the running call by an exception if nobody waits for it any more."""
        calls: _Map = self._running.call.of
        if calls.is_over or time.monotonic() >= calls.deadline:
            raise _StoppedError

    # --- called in the threads ---------------------------------------------------------------------------------------

    def _work(self) -> None:
        while self._run_next():
            pass

    def _run_next(self) -> bool:
        """Runs a call, whose values are freed on return. False if the threads are to end."""
        with self._changed:
            while (call := self._take()) is None:
                if self._is_closed:
                    return False
                self._changed.wait()
        self._running.call = call
        result: Any = None
        error: BaseException | None = None
        try:
            self.check()
            result = call.of.function(*call.arguments)
        except _SetAsideError:
            return True
        except _StoppedError:
            error = _late()
        except BaseException as raised:  # the caller's, whatever it is: a thread never ends by it
            error = raised
        finally:
            del self._running.call
        self._end(call, result, error)
        del call, error  # else a cycle, which keeps the image in memory: the error's traceback holds this frame
        return True

    def _take(self) -> _Call | None:
        """The next call that can run now."""
        if self._set_aside and self._set_aside[0].num_bytes <= self._free_bytes:
            call = self._set_aside.popleft()
            self._claim(call)
            return call
        waiting = self._urgent or self._queued
        return waiting.popleft() if waiting else None

    def _claim(self, call: _Call) -> None:
        self._free_bytes -= call.num_bytes
        call.has_memory = True

    def _end(self, call: _Call, result: Any, error: BaseException | None) -> None:
        calls = call.of
        with self._changed:
            if call.has_memory:
                self._free_bytes += call.num_bytes
                self._changed.notify_all()
            if calls.is_over:
                return
            if error is not None:
                self._fail(calls, error)
                return
            calls.results[call.index] = result
            calls.unfinished -= 1
            if not calls.unfinished:
                self._finish(calls)

    def _fail(self, calls: _Map, error: BaseException) -> None:
        if not calls.is_over:
            calls.error = error
            self._drop(calls)
            self._finish(calls)

    def _finish(self, calls: _Map) -> None:
        calls.is_over = True
        with suppress(RuntimeError):  # the event loop is closed: nobody waits in it
            calls.future.get_loop().call_soon_threadsafe(calls.deliver)

    def _drop(self, calls: _Map) -> None:
        """Removes the calls that have not started."""
        calls.is_over = True
        for waiting in (self._urgent, self._queued, self._set_aside):
            if any(call.of is calls for call in waiting):
                kept = [call for call in waiting if call.of is not calls]
                waiting.clear()
                waiting.extend(kept)
        self._changed.notify_all()


def _late() -> DeadlineExceeded:
    return DeadlineExceeded(lane="images", stage="threads")
