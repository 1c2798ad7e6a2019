"""A request in the engine, and its images one by one."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import numpy.typing as npt

from service.engine.blocks import Block
from service.engine.errors import DeadlineExceeded, EngineError
from service.engine.protocol import Ids, StepCallback, Timing

__all__ = ["Item", "Work"]


class Work:
    """A request: its waiter, its deadline, and the results of its images as they come. Guarded by the engine's lock,
    but for ``report_step`` and ``settle``, which belong to the event loop.
    """

    __slots__ = (
        *("size", "deadline", "admitted", "future", "on_step", "caller", "error", "abandoned", "items"),
        *("_results", "_remaining", "_taken", "_device_seconds", "_batch_images"),
    )

    def __init__(
        self,
        *,
        size: int,
        deadline: float,
        admitted: float,
        future: asyncio.Future[None],
        on_step: StepCallback | None = None,
    ) -> None:
        self.size = size
        self.deadline = deadline
        self.admitted = admitted
        self.future = future
        self.on_step = on_step
        self.caller: object | None = None
        self.error: EngineError | None = None
        self.abandoned = False
        self.items: list[Item] = []
        self._results: npt.NDArray[Any] | None = None
        self._remaining = size
        self._taken: float | None = None
        self._device_seconds = 0.0
        self._batch_images = 0

    @property
    def ended(self) -> bool:
        """Whether there is a result or an error, or nobody to have it."""
        return self._remaining == 0 or self.error is not None or self.abandoned

    @property
    def taken(self) -> bool:
        """Whether the device has begun with it."""
        return self._taken is not None

    def take(self, now: float) -> float:
        """Notes that the device begins with an image of it; gives the seconds since admission."""
        if self._taken is None:
            self._taken = now
        return now - self.admitted

    def report_step(self, index: int, step: int, tokens: Ids, sampled: Ids) -> None:
        """Tells the waiter of a sampling step, if it still waits. Called in the event loop."""
        if self.on_step is None or self.future.done():
            return
        try:
            self.on_step(index, step, tokens, sampled)
        except Exception as error:
            self.future.get_loop().call_exception_handler({"message": "a step callback failed", "exception": error})

    def note_batch(self, images: int, seconds: float) -> None:
        """Notes a batch that held images of it."""
        self._device_seconds += seconds
        self._batch_images = max(self._batch_images, images)

    def results_like(self, row: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The array [n, ...] that results are written into; made for the first one."""
        if self._results is None:
            self._results = np.empty((self.size, *row.shape), row.dtype)
        return self._results

    @property
    def results(self) -> npt.NDArray[Any]:
        """Of all images, once the waiter has been woken without an error."""
        if self._results is None:
            raise AssertionError("a request that ended well has a result for each of its images")
        return self._results

    def note_result(self) -> None:
        """One image more has its result written."""
        self._remaining -= 1

    def fail(self, error: EngineError) -> None:
        """Ends it with an error, unless it has ended."""
        if not self.ended:
            self.error = error

    def settle(self) -> None:
        """Wakes the waiter. Called in the event loop."""
        if self.future.done():
            return
        if self.abandoned:
            self.future.cancel()
        elif self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(None)

    @property
    def was_late(self) -> bool:
        """Whether it ended by its deadline."""
        return isinstance(self.error, DeadlineExceeded)

    @property
    def timing(self) -> Timing:
        """What it cost."""
        queued = 0.0 if self._taken is None else self._taken - self.admitted
        return Timing(queue_seconds=queued, device_seconds=self._device_seconds, batch_images=self._batch_images)


class Item:
    """One image of a request: its place in it, what the device needs, and how it fared.

    ``payload`` is a row of ids for decode and a ``GenerateItem`` for generate; for encode the pixels are in a ``row``
    of a ``block``. ``step`` and ``tokens`` are those of an image being sampled. ``crashes`` counts the workers that
    died over it. ``queued`` says whether it waits in the lane, ``has_begun`` whether a worker ever began with it.
    """

    __slots__ = (
        *("work", "index", "payload", "num_bytes", "queued", "has_begun", "crashes"),
        *("block", "row", "is_being_written"),
        *("step", "tokens"),
    )

    def __init__(self, work: Work, index: int, payload: Any, num_bytes: int) -> None:
        self.work = work
        self.index = index
        self.payload = payload
        self.num_bytes = num_bytes
        self.queued = True
        self.has_begun = False
        self.block: Block | None = None
        self.row = 0
        self.is_being_written = False
        self.step = 0
        self.tokens: Ids | None = None
        self.crashes = 0
