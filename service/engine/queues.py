"""The lanes under one lock, and the way of results back to the event loop: where all threads of the engine meet."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import get_args

from service.engine.encode_lane import EncodeLane
from service.engine.errors import EngineError
from service.engine.lanes import Lane, LaneLimits
from service.engine.protocol import EngineObserver, EngineSnapshot, LaneName, Pixels
from service.engine.token_lanes import DecodeLane, GenerateLane
from service.engine.work import Item, Work

__all__ = ["Queues"]


class Queues:
    """``wake`` guards all of it, and wakes whoever waits for work, for room or for the end. ``turns`` are the lanes in
    the order in which they are served; ``works`` the requests that somebody waits for. ``is_draining``: no more is
    admitted; ``is_over``: nothing will run any more.
    """

    def __init__(
        self,
        limits: LaneLimits | Mapping[LaneName, LaneLimits],
        observer: EngineObserver,
        clock: Callable[[], float],
        *,
        shared: bool,
    ) -> None:
        names: tuple[LaneName, ...] = get_args(LaneName)
        by_lane = limits if isinstance(limits, Mapping) else dict.fromkeys(names, limits)
        self.observer = observer
        self.clock = clock
        self.wake = threading.Condition()
        self.encode = EncodeLane(by_lane["encode"], observer, shared=shared)
        self.generate = GenerateLane(by_lane["generate"], observer)
        decode = DecodeLane(by_lane["decode"], observer)
        self.lanes: dict[LaneName, Lane] = {"encode": self.encode, "decode": decode, "generate": self.generate}
        self.turns = list(self.lanes.values())
        self.works: set[Work] = set()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.is_draining = False
        self.is_over = False

    @property
    def has_work(self) -> bool:
        """Whether anything waits or is being worked on."""
        return any(lane.queued_images or lane.active_images for lane in self.turns)

    def snapshot(self) -> EngineSnapshot:
        """What the lanes hold."""
        with self.wake:
            return EngineSnapshot(**{name: lane.snapshot() for name, lane in self.lanes.items()})

    def write(self, items: Sequence[Item], images: Pixels) -> None:
        """Copies images [n, ...] into the batch that is being filled, and the next if it is full; in any thread."""
        now = self.clock()
        with self.wake:
            if self.is_over:
                return
            blocks = [self.encode.claim(item, images.shape[1:], now) for item in items]
        try:
            for block, item, pixels in zip(blocks, items, images, strict=True):
                if block is not None:
                    block.rows[item.row] = pixels
        finally:
            with self.wake:
                for block, item in zip(blocks, items, strict=True):
                    if block is not None:
                        self.encode.written(item)
                self.wake.notify_all()

    def drop(self, work: Work, name: LaneName) -> None:
        """Frees the room of a request that has ended."""
        self.works.discard(work)
        if not self.is_over:
            self.lanes[name].discard(work)
        self.wake.notify_all()

    def settle(self, lane: Lane, works: Iterable[Work], reports: Sequence[Callable[[], None]] = ()) -> None:
        """Drops what still waits of requests that have ended, and tells their waiters."""
        ended = {work for work in works if work.ended}
        for work in ended:
            if work.error is not None:
                lane.discard(work)
        self.tell(ended, reports)

    def tell(self, ended: set[Work], reports: Sequence[Callable[[], None]] = ()) -> None:
        """Reports sampling steps, then wakes waiters, with one call for all of them."""
        self.works -= ended

        def wake_all() -> None:
            for report in reports:
                report()
            for work in ended:
                work.settle()

        if ended or reports:
            self.in_loop(wake_all)

    def in_loop(self, function: Callable[[], None]) -> None:
        """Calls a function in the event loop, from any thread."""
        # A loop that was closed before a held device came back has no waiters left.
        if self.loop is not None:
            with suppress(RuntimeError):
                self.loop.call_soon_threadsafe(function)

    def end(self, error: EngineError) -> None:
        """Nothing will run any more: every waiter is told."""
        with self.wake:
            self.is_over = True
            for work in self.works:
                work.fail(error)
            self.tell(set(self.works))
            for lane in self.turns:
                lane.clear()
            self.encode.pool.close()
            self.wake.notify_all()
