"""A lane: one operation's queue of images, its bounds, and how a batch is formed from it.

Plain data, without threads or a clock of its own: the engine calls it under its lock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.engine.errors import DeadlineExceeded, EngineError, QueueFull
from service.engine.protocol import EngineObserver, LaneSnapshot, StepCallback, Timing

__all__ = ["Item", "Lane", "LaneLimits", "Work"]


@dataclass(frozen=True, kw_only=True)
class LaneLimits:
    """Images of a batch, and images and bytes that may wait. Each is at least 1."""

    max_batch_size: int = 32
    max_images: int = 512
    max_bytes: int = 256 * 1024 * 1024

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_images", "max_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 1 is expected")


class Work:
    """A request in the engine: its waiter, its deadline, and the results of its images as they come."""

    def __init__(
        self, *, size: int, deadline: float, admitted: float, future: asyncio.Future[None], on_step: StepCallback | None
    ) -> None:
        self.deadline = deadline
        self.future = future
        self.on_step = on_step
        self.error: EngineError | None = None
        self.abandoned = False
        self.results: npt.NDArray[Any] | None = None
        self._size = size
        self._remaining = size
        self._admitted = admitted
        self._taken: float | None = None
        self._device_seconds = 0.0
        self._batch_images = 0

    @property
    def ended(self) -> bool:
        """Whether there is a result or an error, or nobody to have it."""
        return self._remaining == 0 or self.error is not None or self.abandoned

    @property
    def failed(self) -> bool:
        """Whether it ended with an error other than its deadline."""
        return self.error is not None and not isinstance(self.error, DeadlineExceeded)

    @property
    def taken(self) -> bool:
        """Whether the device has begun with it."""
        return self._taken is not None

    def take(self, now: float) -> float:
        """Notes that the device takes an image of it; gives the seconds since admission."""
        if self._taken is None:
            self._taken = now
        return now - self._admitted

    def report_step(self, index: int, step: int, tokens: npt.NDArray[np.int64]) -> None:
        """Tells the waiter of a sampling step, if it still waits. Called in the event loop."""
        if self.on_step is None or self.future.done():
            return
        try:
            self.on_step(index, step, tokens)
        except Exception as error:
            self.future.get_loop().call_exception_handler({"message": "a step callback failed", "exception": error})

    def note_batch(self, images: int, seconds: float) -> None:
        """Notes a batch that held images of it."""
        self._device_seconds += seconds
        self._batch_images = max(self._batch_images, images)

    def put(self, index: int, result: npt.NDArray[Any]) -> None:
        """Keeps the result of one image."""
        if self.results is None:
            self.results = np.empty((self._size, *result.shape), result.dtype)
        self.results[index] = result
        self._remaining -= 1

    def fail(self, error: EngineError) -> None:
        """Ends it with an error, unless it has ended."""
        if not self.ended:
            self.error = error

    def settle(self) -> None:
        """Wakes the waiter. Called in the event loop."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(None)

    @property
    def timing(self) -> Timing:
        """What it cost."""
        queued = 0.0 if self._taken is None else self._taken - self._admitted
        return Timing(queue_seconds=queued, device_seconds=self._device_seconds, batch_images=self._batch_images)


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a request: its place in it, and what the device needs."""

    work: Work
    index: int
    payload: Any
    num_bytes: int


class Lane:
    """First in, first out, within the limits."""

    def __init__(self, name: str, limits: LaneLimits, observer: EngineObserver) -> None:
        self.name = name
        self.limits = limits
        self.active_images = 0
        self.seconds_per_image = 0.0
        self._unshared_seconds = 0.0
        self._observer = observer
        self._items: deque[Item] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    def admit(self, work: Work, payloads: Sequence[Any], num_bytes: int, *, wait: Callable[[], float]) -> None:
        """Queues all images of a request, or none. Raises ``QueueFull``; ``wait`` estimates the seconds until room."""
        count, total = len(payloads), num_bytes * len(payloads)
        bounds = (
            ("images", count, len(self._items), self.limits.max_images),
            ("bytes", total, self._bytes, self.limits.max_bytes),
        )
        # Both bounds, before either queue is looked at: what never fits is not told to come again.
        for reason, asked, _, limit in bounds:
            if asked > limit:
                self._observer.rejected(self.name, "too_large")
                raise QueueFull(
                    f"The request has {asked} {reason}; the {self.name} queue holds {limit}",
                    lane=self.name,
                    limit=limit,
                    retry_after=None,
                )
        for reason, asked, held, limit in bounds:
            if held + asked > limit:
                self._observer.rejected(self.name, reason)
                raise QueueFull(
                    f"The {self.name} queue is full ({held} of {limit} {reason})",
                    lane=self.name,
                    limit=limit,
                    retry_after=wait(),
                )
        self._items.extend(Item(work, index, payload, num_bytes) for index, payload in enumerate(payloads))
        self._bytes += total

    def take(self, room: int, now: float) -> tuple[list[Item], list[Work]]:
        """Up to ``room`` images for the device, and the requests found too late on the way, which have now ended."""
        taken: list[Item] = []
        expired: list[Work] = []
        while self._items and len(taken) < room:
            item = self._items.popleft()
            self._bytes -= item.num_bytes
            if self.is_wanted(item, now, expired):
                self._observer.queue_wait(self.name, item.work.take(now))
                taken.append(item)
        return taken, expired

    def is_wanted(self, item: Item, now: float, expired: list[Work]) -> bool:
        """Whether somebody still waits for an image in time; a request found too late ends, and joins ``expired``."""
        if item.work.ended:
            self._note_abandoned(item.work)
            return False
        if now >= item.work.deadline:
            item.work.fail(DeadlineExceeded(lane=self.name, stage="device" if item.work.taken else "queue"))
            self._note_abandoned(item.work)
            expired.append(item.work)
            return False
        return True

    def discard(self, work: Work) -> None:
        """Drops what waits of a request that has ended, so that its room is free at once."""
        queued, self._items = self._items, deque()
        for item in queued:
            if item.work is work:
                self._bytes -= item.num_bytes
                self._note_abandoned(work)
            else:
                self._items.append(item)

    def drain(self) -> Iterator[Work]:
        """Empties the queue, giving the requests that were in it."""
        while self._items:
            item = self._items.popleft()
            self._bytes -= item.num_bytes
            yield item.work

    def note_cost(self, ended: int, seconds: float) -> None:
        """Learns what an image costs; recent ones count most. Images that end share the time since others ended,
        because a sampling step is only a part of an image's cost.
        """
        self._unshared_seconds += seconds
        if not ended:
            return
        cost, self._unshared_seconds = self._unshared_seconds / ended, 0.0
        self.seconds_per_image += (cost - self.seconds_per_image) * (0.2 if self.seconds_per_image else 1.0)

    def _note_abandoned(self, work: Work) -> None:
        self._observer.abandoned(self.name, "expired" if isinstance(work.error, DeadlineExceeded) else "cancelled")

    def snapshot(self) -> LaneSnapshot:
        """What it holds."""
        return LaneSnapshot(queued_images=len(self._items), queued_bytes=self._bytes, active_images=self.active_images)
