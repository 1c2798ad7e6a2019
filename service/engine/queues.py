"""The lanes under one lock, shared by all threads of the engine, and the delivery of results to the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import get_args

from service.engine.encode_lane import EncodeLane
from service.engine.errors import EngineError
from service.engine.lanes import Lane, LaneLimits
from service.engine.protocol import EngineObserver, LaneName, LaneSnapshot, Pixels
from service.engine.requests import EngineRequest, ImageTask
from service.engine.token_lanes import DecodeLane, GenerateLane


class Queues:
    """``wake`` guards everything and is notified of new work, free room and the end. ``lanes`` are in the order of the
    round robin: the next to be served is first. ``requests`` are those that a caller waits for, ``up`` the
    workers that are connected, with their batch limits by lane. ``is_draining``: no request is admitted any more;
    ``is_over``: no batch runs any more.
    """

    def __init__(
        self,
        limits: LaneLimits | Mapping[LaneName, LaneLimits],
        observer: EngineObserver,
        clock: Callable[[], float],
        *,
        shared: bool,
    ) -> None:
        by_lane = limits if isinstance(limits, Mapping) else dict.fromkeys(get_args(LaneName), limits)
        self.observer = observer
        self.clock = clock
        self.wake = threading.Condition()
        self.encode = EncodeLane(by_lane["encode"], observer, shared=shared)
        self.generate = GenerateLane(by_lane["generate"], observer)
        decode = DecodeLane(by_lane["decode"], observer)
        self.lanes: dict[LaneName, Lane] = {"encode": self.encode, "decode": decode, "generate": self.generate}
        self.requests: set[EngineRequest] = set()
        self.up: dict[str, Mapping[LaneName, int]] = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        self.is_draining = False
        self.is_over = False

    @property
    def has_work(self) -> bool:
        """Whether any image waits or is on a device."""
        return any(lane.queued_images or lane.active_images for lane in self.lanes.values())

    def snapshot(self) -> dict[LaneName, LaneSnapshot]:
        """The counters of all lanes."""
        with self.wake:
            return {name: lane.snapshot() for name, lane in self.lanes.items()}

    def add_worker(self, name: str, batch_limits: Mapping[LaneName, int]) -> None:
        """Records that a worker is connected."""
        self.up[name] = batch_limits
        self._set_batch_sizes()

    def remove_worker(self, name: str) -> None:
        """Records that a worker is not connected."""
        self.up.pop(name, None)
        self._set_batch_sizes()

    def _set_batch_sizes(self) -> None:
        """Batches are as large as the largest limit of a worker; a worker with a smaller limit runs them in parts."""
        for name, lane in self.lanes.items():
            sizes = [limits[name] for limits in self.up.values() if name in limits]
            if sizes and lane.limits.max_batch_size is None:
                lane.batch_size = max(sizes)
        self.wake.notify_all()

    def write(self, task: ImageTask, pixels: Pixels) -> None:
        """Copies an image [S, S, 3] into a row of the encode lane's blocks. Called in any thread."""
        now = self.clock()
        with self.wake:
            block = None if self.is_over else self.encode.claim(task, pixels.shape, now)
        if block is None:
            return
        try:
            block.rows[task.row] = pixels
        finally:
            with self.wake:
                self.encode.written(task)
                self.wake.notify_all()

    def drop(self, request: EngineRequest) -> None:
        """Frees the room of a request that has ended."""
        self.requests.discard(request)
        if not self.is_over:
            self.lanes[request.lane].discard(request)
        self.wake.notify_all()

    def resolve(self, requests: Iterable[EngineRequest], reports: Sequence[Callable[[], None]] = ()) -> None:
        """Removes the requests that have ended. The event loop then calls the step reports and wakes the callers, in one
        call for all.
        """
        ended = {request for request in requests if request.ended}
        self.requests -= ended
        for request in ended:
            if request.error is not None and not self.is_over:
                self.lanes[request.lane].discard(request)

        def deliver() -> None:
            for report in reports:
                report()
            for request in ended:
                request.resolve()

        if ended or reports:
            self.call_in_loop(deliver)

    def call_in_loop(self, function: Callable[[], None]) -> None:
        """Calls a function in the event loop, from any thread."""
        if self.loop is not None:
            with suppress(RuntimeError):  # the loop is closed: nothing waits in it
                self.loop.call_soon_threadsafe(function)

    def end(self, error: EngineError) -> None:
        """Fails all requests; no batch runs any more."""
        with self.wake:
            self.is_over = True
            for request in self.requests:
                request.fail(error)
            self.resolve(self.requests)
            for lane in self.lanes.values():
                lane.clear()
            self.encode.pool.close()
            self.wake.notify_all()
