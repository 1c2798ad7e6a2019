"""A lane: the queue of one operation. It admits requests, forms batches, and drops images that are not needed any more.

::

    admit ─> queued ──────────> active ─> done             every image is in exactly one state
              │ ^ └> prefetched ─┘  │
              │ └─────── put_back ──┤   its worker died before starting the batch
              └─> done (dropped)    └─> retry_unbatched   its batch failed, or its worker died running it

``prefetched`` images were sent to a worker that is still busy; they count as waiting until it starts them. A lane has no
lock of its own: the engine's lock guards all lanes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.engine.blocks import Block
from service.engine.errors import QueueFull
from service.engine.jobs import Job
from service.engine.protocol import EngineObserver, LaneName, LaneSnapshot, RejectReason, RowState
from service.engine.requests import EngineRequest, ImageTask, TaskState

_DEFAULT_BATCH = 32
# Target duration of a decode batch while other lanes wait.
_SHARED_BATCH_SECONDS = 0.1
_WAITING: tuple[TaskState, ...] = ("queued", "prefetched")


@dataclass(frozen=True, kw_only=True)
class LaneLimits:
    """Images per batch (None: the workers' own limit), images and bytes that may wait, all at least 1; and in seconds how
    long an image may wait for a batch to fill (0: an idle worker takes what is queued), how long at most for images that
    are expected at once, and how long a request may wait for room in a full lane.
    """

    max_batch_size: int | None = None
    max_images: int = 512
    max_bytes: int = 256 * 1024 * 1024
    max_wait: float = 0.0
    gathering_wait: float = 0.0
    admission_wait: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_images", "max_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; at least 1 is expected")


@dataclass(slots=True)
class Batch:
    """Images that a worker runs together. Encode images lie in ``block``, from row ``first`` on. ``isolated``: one image
    that is retried unbatched. ``hand_over_seconds``: time spent sending it to the worker.
    """

    lane: Lane
    tasks: list[ImageTask]
    block: Block | None = None
    first: int = 0
    isolated: bool = False
    hand_over_seconds: float = 0.0

    def job(self) -> Job:
        """The job to send to the worker."""
        name = self.lane.name
        return Job(
            lane=name,
            count=len(self.tasks),
            deadline=max(task.request.deadline for task in self.tasks),
            block=self.block,
            first=self.first,
            latents=name == "encode" and self.tasks[0].payload,
            tokens=np.stack([task.payload for task in self.tasks]) if name == "decode" else None,
            rows=[_row_state(task) for task in self.tasks] if name == "generate" else (),
        )


def _row_state(task: ImageTask) -> RowState:
    item = task.payload
    return RowState(label=item.label, seed=item.seed, settings=item.settings, step=task.step, tokens=task.tokens)


class Lane(ABC):
    """First in, first out, within the limits. ``seconds_per_image`` is a moving average of the device time;
    ``finished_at``: when the last batch finished.
    """

    def __init__(self, name: LaneName, limits: LaneLimits, observer: EngineObserver) -> None:
        self.name = name
        self.limits = limits
        self.batch_size = limits.max_batch_size or _DEFAULT_BATCH
        self.queued_images = 0
        self.queued_bytes = 0
        self.active_images = 0
        self.seconds_per_image = 0.0
        self.finished_at = -math.inf
        self._unattributed_seconds = 0.0
        self._observer = observer
        self._isolated: deque[ImageTask] = deque()

    def _set_state(self, task: ImageTask, state: TaskState) -> None:
        """Moves a task to a state; the only place that changes the lane's counters."""
        change = (state in _WAITING) - (task.state in _WAITING)
        self.queued_images += change
        self.queued_bytes += change * task.num_bytes
        self.active_images += (state == "active") - (task.state == "active")
        task.state = state

    # --- admission ---------------------------------------------------------------------------------------------------

    def admit(
        self, request: EngineRequest, payloads: Sequence[Any], num_bytes: int, *, wait: Callable[[], float]
    ) -> None:
        """Queues all images of a request, or none. Raises as ``check_room`` does."""
        self.check_room(len(payloads), num_bytes, wait=wait)
        request.tasks = [ImageTask(request, index, payload, num_bytes) for index, payload in enumerate(payloads)]
        for task in request.tasks:
            self._set_state(task, "queued")
        self._enqueue(request.tasks)

    def check_room(self, images: int, num_bytes: int, *, wait: Callable[[], float]) -> None:
        """Raises ``QueueFull`` if images of ``num_bytes`` each do not fit; ``wait`` estimates the seconds until they do."""
        bounds: tuple[tuple[RejectReason, int, int, int], ...] = (
            ("images", images, self.queued_images, self.limits.max_images),
            ("bytes", num_bytes * images, self.queued_bytes, self.limits.max_bytes),
        )
        # Both limits are checked before the current queue: a request that can never fit gets no retry time.
        for kind, requested, _, limit in bounds:
            if requested > limit:
                self._observer.rejected(self.name, "too_large")
                message = f"The request has {requested} {kind}; the {self.name} queue holds {limit}"
                raise QueueFull(message, lane=self.name, limit=limit, retry_after=None)
        for kind, requested, held, limit in bounds:
            if held + requested > limit:
                self._observer.rejected(self.name, kind)
                message = f"The {self.name} queue is full ({held} of {limit} {kind})"
                raise QueueFull(message, lane=self.name, limit=limit, retry_after=wait())

    def free_images(self) -> int:
        """How many more images may wait."""
        return self.limits.max_images - self.queued_images if self.queued_bytes < self.limits.max_bytes else 0

    @abstractmethod
    def _enqueue(self, tasks: Sequence[ImageTask]) -> None: ...

    # --- batches -----------------------------------------------------------------------------------------------------

    def seconds_until_due(self, now: float, *, only_full: bool, worker: str | None = None) -> float | None:
        """Seconds until a batch can be taken: 0 if there is one now, None if nothing waits. ``only_full``: for a busy
        worker, which gains nothing from prefetching a batch that can still grow. ``worker``: as for ``take``.
        A batch waits for images that are expected at once, for at most the time that one takes on the device.
        """
        retries = self._next_isolated(worker) is not None
        if only_full:
            return 0.0 if not retries and self._has_full_batch() else None
        if retries or self._has_full_batch():
            return 0.0
        oldest = self._oldest_arrival()
        if oldest is None:
            return None
        due = oldest + self.limits.max_wait
        if self._expects_more(oldest):
            gathering = min(self.seconds_per_image, self.limits.gathering_wait)
            due = max(due, max(oldest, self.finished_at) + gathering)
        return max(0.0, due - now)

    def _expects_more(self, oldest: float) -> bool:  # noqa: ARG002
        """Whether more images are expected at once; ``oldest``: arrival of the oldest that waits."""
        return False

    def take(
        self, now: float, expired: list[EngineRequest], *, others_wait: bool = False, worker: str | None = None
    ) -> Batch:
        """Takes the next batch, which may be empty; requests found past their deadline are appended to ``expired``. A
        batch with a block and no tasks is still being written: ``EncodeLane.fill`` completes it. ``others_wait``: other
        lanes have batches too, so a lane that forms batches on demand limits this one to about 0.1 s. ``worker`` gets no
        image that failed on it before; None: there is no other worker.
        """
        while (task := self._next_isolated(worker)) is not None:
            self._isolated.remove(task)
            if self._is_wanted(task, now, expired):
                return Batch(self, [task], task.block, task.row, isolated=True)
            self.finish(task)
        limit = self.batch_size
        if others_wait and self.seconds_per_image:
            limit = max(1, min(limit, int(_SHARED_BATCH_SECONDS / self.seconds_per_image)))
        return self._take(now, expired, limit)

    def _next_isolated(self, worker: str | None) -> ImageTask | None:
        return next((task for task in self._isolated if worker is None or task.failed_on != worker), None)

    @abstractmethod
    def _take(self, now: float, expired: list[EngineRequest], limit: int) -> Batch:
        """``limit`` is for lanes that form batches when they are taken."""

    @abstractmethod
    def _has_full_batch(self) -> bool: ...

    @abstractmethod
    def _oldest_arrival(self) -> float | None:
        """When the oldest image that can be taken now arrived; None if there is none."""

    def prefetch(self, batch: Batch) -> None:
        """Records that a batch was sent to a busy worker: its images count as waiting until the worker starts it."""
        for task in batch.tasks:
            self._set_state(task, "prefetched")

    def start(self, batch: Batch, now: float) -> None:
        """Records that a worker starts a batch."""
        for task in batch.tasks:
            self._set_state(task, "active")
            if not task.was_started:
                task.was_started = True
                request = task.request
                if request.started_at is None:
                    request.started_at = now
                self._observer.queue_wait(self.name, now - request.admitted_at)

    def put_back(self, batch: Batch) -> None:
        """Queues images that no worker has started again, before all others."""
        if batch.isolated:
            self._isolated.extendleft(batch.tasks)
        else:
            self._put_back(batch)

    @abstractmethod
    def _put_back(self, batch: Batch) -> None: ...

    def retry_unbatched(self, task: ImageTask) -> None:
        """Runs an image whose batch failed again in a batch of its own, before all others."""
        self._isolated.append(task)

    def finish(self, task: ImageTask) -> None:
        """Removes an active image, which has its result or is not needed any more."""
        self._set_state(task, "done")

    # --- dropping ----------------------------------------------------------------------------------------------------

    def _is_wanted(self, task: ImageTask, now: float, expired: list[EngineRequest]) -> bool:
        """Whether the request of an image is still open; one past its deadline is failed and appended to ``expired``."""
        request = task.request
        if not request.ended and now >= request.deadline:
            request.expire()
            expired.append(request)
        if request.ended:
            self.count_abandoned(request)
        return not request.ended

    def discard(self, request: EngineRequest) -> None:
        """Drops the queued images of a request that has ended, so that their room is free at once."""
        for task in request.tasks:
            if task.state == "queued":
                self._set_state(task, "done")
                if self._remove(task):
                    self.count_abandoned(request)

    @abstractmethod
    def _remove(self, task: ImageTask) -> bool:
        """Removes a queued image; False if its pixels never arrived, because it could not be decoded."""

    def count_abandoned(self, request: EngineRequest) -> None:
        """Reports an image that is dropped unfinished."""
        self._observer.abandoned(self.name, "expired" if request.has_expired else "cancelled")

    def clear(self) -> None:
        """Empties the lane after the engine has ended."""
        self._isolated.clear()
        self.queued_images = self.queued_bytes = self.active_images = 0

    # --- statistics --------------------------------------------------------------------------------------------------

    def record_cost(self, ended: int, seconds: float, now: float) -> None:
        """Updates ``finished_at`` and ``seconds_per_image``. The images that end share all seconds since the last ones
        ended, because a sampling step is only a part of an image's cost.
        """
        self.finished_at = now
        self._unattributed_seconds += seconds
        if ended:
            cost, self._unattributed_seconds = self._unattributed_seconds / ended, 0.0
            self.seconds_per_image += (cost - self.seconds_per_image) * (0.2 if self.seconds_per_image else 1.0)

    def snapshot(self) -> LaneSnapshot:
        """The counters."""
        return LaneSnapshot(
            queued_images=self.queued_images, queued_bytes=self.queued_bytes, active_images=self.active_images
        )
