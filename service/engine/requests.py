"""A request to the engine, and its images as single tasks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from service.engine.blocks import Block
from service.engine.errors import DeadlineExceeded, EngineError
from service.engine.protocol import Ids, LaneName, StepCallback, Timing

TaskState = Literal["new", "queued", "prefetched", "active", "done"]


@dataclass(slots=True, eq=False, kw_only=True)
class EngineRequest:
    """A request of ``size`` images: its deadline, the future its caller awaits, and results as they arrive.

    Guarded by the engine's lock, except ``report_step`` and ``resolve``, which the event loop calls. ``results`` is an
    array [size, ...], allocated with the first result.
    """

    lane: LaneName
    size: int
    deadline: float
    admitted_at: float
    future: asyncio.Future[None]
    on_step: StepCallback | None = None
    caller: object | None = None
    tasks: list[ImageTask] = field(default_factory=list, repr=False)
    error: EngineError | None = None
    abandoned: bool = False
    started_at: float | None = None
    results: npt.NDArray[Any] | None = None
    finished_images: int = 0
    device_seconds: float = 0.0
    batch_images: int = 0

    @property
    def ended(self) -> bool:
        """Whether it has all results or an error, or its caller has left."""
        return self.finished_images == self.size or self.error is not None or self.abandoned

    @property
    def has_expired(self) -> bool:
        """Whether it ended because its deadline passed."""
        return isinstance(self.error, DeadlineExceeded)

    @property
    def timing(self) -> Timing:
        """Time spent in the queue and on the device."""
        queued = 0.0 if self.started_at is None else self.started_at - self.admitted_at
        return Timing(queue_seconds=queued, device_seconds=self.device_seconds, batch_images=self.batch_images)

    def allocate_results(self, row: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Returns ``results``, for rows of the shape and type of ``row``."""
        if self.results is None:
            self.results = np.empty((self.size, *row.shape), row.dtype)
        return self.results

    def expire(self) -> None:
        """Fails it with ``DeadlineExceeded``."""
        self.fail(DeadlineExceeded(lane=self.lane, stage="queue" if self.started_at is None else "device"))

    def fail(self, error: EngineError) -> None:
        """Ends it with an error, unless it has ended."""
        if not self.ended:
            self.error = error

    def report_step(self, index: int, step: int, tokens: Ids, sampled: Ids) -> None:
        """Calls ``on_step`` if the caller still waits. Called in the event loop."""
        if self.on_step is None or self.future.done():
            return
        try:
            self.on_step(index, step, tokens, sampled)
        except Exception as error:
            self.future.get_loop().call_exception_handler({"message": "a step callback failed", "exception": error})

    def resolve(self) -> None:
        """Completes the future. Called in the event loop."""
        if self.future.done():
            return
        if self.abandoned:
            self.future.cancel()
        elif self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(None)


@dataclass(slots=True, eq=False)
class ImageTask:
    """One image of a request.

    ``payload`` is a row of ids or latents for decode and a ``GenerateItem`` for generate; for encode it is whether latents
    are wanted instead of ids, and the pixels are in ``row`` of ``block``. ``state`` belongs to the lane: ``queued``,
    ``prefetched`` (sent to a worker that is still busy), ``active`` (on a device, or between attempts or sampling steps)
    or ``done``. ``was_started``: a worker has started it at least
    once. ``crashes`` counts the workers that died running it; ``failed_on`` is the last worker that died or failed with
    it. ``step`` and ``tokens`` describe an image being sampled.
    """

    request: EngineRequest
    index: int
    payload: Any
    num_bytes: int
    state: TaskState = "new"
    was_started: bool = False
    crashes: int = 0
    failed_on: str | None = None
    block: Block | None = None
    row: int = 0
    is_being_written: bool = False
    step: int = 0
    tokens: Ids | None = None
