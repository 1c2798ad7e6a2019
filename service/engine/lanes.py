"""One operation's queue: what it admits, what it gives to a device, and what it drops on the way.

::

    admit ─> queued ─> take ─> active ─> finish            each image is counted in exactly one place
               │  ^     │ ^       │
               │  │     └─┴ hold ... begin   its worker is still busy: it counts as waiting
               │  └── put_back ───┤   its worker died before it began
               └─> dropped        └─> retry_alone   its batch failed, or its worker died over it

A lane has no lock of its own: the engine's guards all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from service.engine.blocks import Block
from service.engine.errors import DeadlineExceeded, QueueFull
from service.engine.jobs import Job
from service.engine.protocol import EngineObserver, LaneName, LaneSnapshot, RowState
from service.engine.work import Item, Work

__all__ = ["Batch", "Lane", "LaneLimits"]

_DEFAULT_BATCH = 32
# What a batch may take while other lanes wait, where a shorter one can be made.
_TURN_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class LaneLimits:
    """Images of a batch (None: what the workers found good), images and bytes that may wait, and the seconds that an
    image may wait for company (0: a free worker takes what there is). The first three are at least 1.
    """

    max_batch_size: int | None = None
    max_images: int = 512
    max_bytes: int = 256 * 1024 * 1024
    max_wait: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_images", "max_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; at least 1 is expected")


@dataclass(slots=True)
class Batch:
    """Images that a worker takes together; those of encode lie in a ``block``, from row ``first`` on. ``alone``: one
    image, whose last batch failed. ``is_ahead``: its worker is still busy with another. ``hand_over_seconds``: what telling
    the worker took.
    """

    lane: Lane
    items: list[Item]
    block: Block | None = None
    first: int = 0
    alone: bool = False
    is_ahead: bool = False
    hand_over_seconds: float = 0.0

    def job(self) -> Job:
        """What the worker is told."""
        name, items = self.lane.name, self.items
        deadline = max(item.work.deadline for item in items)
        if name == "encode":
            return Job(lane=name, count=len(items), deadline=deadline, block=self.block, first=self.first)
        if name == "decode":
            return Job(
                lane=name, count=len(items), deadline=deadline, tokens=np.stack([item.payload for item in items])
            )
        rows = [
            RowState(
                label=item.payload.label,
                seed=item.payload.seed,
                settings=item.payload.settings,
                step=item.step,
                tokens=item.tokens,
            )
            for item in items
        ]
        return Job(lane=name, count=len(items), deadline=deadline, rows=rows)


class Lane(ABC):
    """First in, first out, within the limits."""

    def __init__(self, name: LaneName, limits: LaneLimits, observer: EngineObserver) -> None:
        self.name = name
        self.limits = limits
        self.batch_size = limits.max_batch_size or _DEFAULT_BATCH
        self.queued_images = 0
        self.queued_bytes = 0
        self.active_images = 0
        self.seconds_per_image = 0.0
        self._unshared_seconds = 0.0
        self._observer = observer
        self._alone: deque[Item] = deque()

    # --- admission ---------------------------------------------------------------------------------------------------

    def admit(self, work: Work, payloads: Sequence[Any], num_bytes: int, *, wait: Callable[[], float]) -> None:
        """Queues all images of a request, or none. Raises ``QueueFull``; ``wait`` estimates the seconds until room."""
        count, total = len(payloads), num_bytes * len(payloads)
        bounds = (
            ("images", count, self.queued_images, self.limits.max_images),
            ("bytes", total, self.queued_bytes, self.limits.max_bytes),
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
        work.items = [Item(work, index, payload, num_bytes) for index, payload in enumerate(payloads)]
        self.queued_images += count
        self.queued_bytes += total
        self._enqueue(work.items)

    @abstractmethod
    def _enqueue(self, items: Sequence[Item]) -> None: ...

    # --- batches -----------------------------------------------------------------------------------------------------

    def seconds_until_due(self, now: float, *, only_full: bool) -> float | None:
        """When there is a batch to take: at 0 there is one now, at None there is nothing. ``only_full``: for a worker
        that is still busy, which gains nothing from taking a batch that can grow.
        """
        if only_full:
            return 0.0 if not self._alone and self._has_full_batch() else None
        if self._alone or self._has_full_batch():
            return 0.0
        oldest = self._oldest()
        return None if oldest is None else max(0.0, oldest + self.limits.max_wait - now)

    def take(self, now: float, expired: list[Work], *, others_wait: bool = False) -> Batch:
        """The next images for a worker, perhaps none; requests found too late on the way join ``expired``. A batch
        with a block and without images is still being written: ``EncodeLane.fill`` completes it. Where other lanes wait,
        one that can divide its batches takes no more than a turn's worth.
        """
        while self._alone:
            item = self._alone.popleft()
            if self._is_wanted(item, now, expired):
                return Batch(self, [item], item.block, item.row, alone=True)
            self.finish(item)
        most = self.batch_size
        if others_wait and self.seconds_per_image:
            most = max(1, min(most, int(_TURN_SECONDS / self.seconds_per_image)))
        return self._take(now, expired, most)

    @abstractmethod
    def _take(self, now: float, expired: list[Work], most: int) -> Batch:
        """``most`` is for lanes whose batches are not made up before they are taken."""

    @abstractmethod
    def _has_full_batch(self) -> bool: ...

    @abstractmethod
    def _oldest(self) -> float | None:
        """When the first image of what could be taken now came; None if there is none."""

    def hold(self, batch: Batch) -> None:
        """A batch is for a worker that is still busy: until it begins with it, its images count as waiting."""
        batch.is_ahead = True
        for item in batch.items:
            self._count(item, waiting=1)

    def begin(self, batch: Batch, now: float) -> None:
        """A worker begins with a batch."""
        self._no_longer_ahead(batch)
        for item in batch.items:
            if not item.has_begun:
                item.has_begun = True
                self._observer.queue_wait(self.name, item.work.take(now))

    def _no_longer_ahead(self, batch: Batch) -> None:
        if batch.is_ahead:
            batch.is_ahead = False
            for item in batch.items:
                self._count(item, waiting=-1)

    def put_back(self, batch: Batch) -> None:
        """Images that no worker has begun wait again, before all others."""
        self._no_longer_ahead(batch)
        if batch.alone:
            self._alone.extendleft(batch.items)
        else:
            self._put_back(batch)

    @abstractmethod
    def _put_back(self, batch: Batch) -> None: ...

    def retry_alone(self, item: Item) -> None:
        """An image whose batch failed is run again without company, before all others."""
        self._alone.append(item)

    def finish(self, item: Item) -> None:  # noqa: ARG002  encode gives back its row
        """An active image has its result, or is not wanted any more."""
        self.active_images -= 1

    def _activate(self, items: Iterable[Item]) -> None:
        for item in items:
            self._leave_queue(item)
            self.active_images += 1

    def _leave_queue(self, item: Item) -> None:
        item.queued = False
        self.queued_images -= 1
        self.queued_bytes -= item.num_bytes

    def _queue_again(self, item: Item) -> None:
        item.queued = True
        self._count(item, waiting=1)

    def _count(self, item: Item, *, waiting: Literal[1, -1]) -> None:
        """An active image waits (1), or one that waits is active (-1)."""
        self.active_images -= waiting
        self.queued_images += waiting
        self.queued_bytes += waiting * item.num_bytes

    # --- what is not wanted ------------------------------------------------------------------------------------------

    def _is_wanted(self, item: Item, now: float, expired: list[Work]) -> bool:
        """Whether somebody still waits for an image in time; a request found too late ends, and joins ``expired``."""
        work = item.work
        if not work.ended and now >= work.deadline:
            work.fail(DeadlineExceeded(lane=self.name, stage="device" if work.taken else "queue"))
            expired.append(work)
        if work.ended:
            self.note_abandoned(work)
        return not work.ended

    def discard(self, work: Work) -> None:
        """Drops what waits of a request that has ended, so that its room is free at once."""
        for item in work.items:
            if item.queued:
                self._leave_queue(item)
                if self._forget(item):
                    self.note_abandoned(work)

    @abstractmethod
    def _forget(self, item: Item) -> bool:
        """Frees the place of an image that waited; False if it never came, because it could not be decoded."""

    def note_abandoned(self, work: Work) -> None:
        """Counts an image that is dropped unfinished."""
        self._observer.abandoned(self.name, "expired" if work.was_late else "cancelled")

    def clear(self) -> None:
        """Empties it; the requests in it have been told."""
        self._alone.clear()
        self.queued_images = self.queued_bytes = self.active_images = 0

    # --- figures -----------------------------------------------------------------------------------------------------

    def note_cost(self, ended: int, seconds: float) -> None:
        """Learns what an image costs; recent ones count most. Images that end share the time since others ended,
        because a sampling step is only a part of an image's cost.
        """
        self._unshared_seconds += seconds
        if not ended:
            return
        cost, self._unshared_seconds = self._unshared_seconds / ended, 0.0
        self.seconds_per_image += (cost - self.seconds_per_image) * (0.2 if self.seconds_per_image else 1.0)

    def snapshot(self) -> LaneSnapshot:
        """What it holds."""
        return LaneSnapshot(
            queued_images=self.queued_images, queued_bytes=self.queued_bytes, active_images=self.active_images
        )
