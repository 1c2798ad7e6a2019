"""The batching engine: requests to batches, batches to workers, results back. The same core serves any kind of link.

::

    event loop and decoding threads               one thread per link                     workers
    open_encode() ─> admit ─> rows of a block ─┐
    decode() ──────> admit ─> ids ─────────────┼─> round robin ─> take ─> link.send ─────> run
    generate() ────> admit ─> rows of a step ──┘              resolve <─ link.receive <─── outcome
        ^──────────── one call_soon_threadsafe per batch ─────────┘

All threads share state in ``queues.py`` only; ``runner.py`` is the thread of a link.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from service.engine.admission import AdmissionQueue
from service.engine.errors import DeadlineExceeded, EngineStopped
from service.engine.jobs import Link, LinkDown
from service.engine.lanes import Lane, LaneLimits
from service.engine.protocol import (
    EngineImages,
    EngineObserver,
    EngineState,
    EngineTokens,
    GenerateItem,
    Ids,
    LaneName,
    LaneSnapshot,
    Latents,
    Pixels,
    StepCallback,
)
from service.engine.queues import Queues
from service.engine.requests import EngineRequest
from service.engine.runner import LinkRunner

log = logging.getLogger(__name__)


class EncodeTicket:
    """Reserved room for the images of one request, which decoding threads fill. A context manager: leaving it abandons
    images that have no result yet.
    """

    def __init__(self, engine: Engine, queues: Queues, request: EngineRequest, row_shape: tuple[int, ...]) -> None:
        self._engine = engine
        self._queues = queues
        self._request = request
        self._row_shape = row_shape

    def put(self, index: int, pixels: Pixels) -> None:
        """Copies image ``index``, uint8 [S, S, 3], into a batch. Called once per image, in any thread. Raises
        ``ValueError`` for another shape or type.
        """
        if pixels.dtype != np.uint8 or pixels.shape != self._row_shape:
            raise ValueError(
                f"an image is {pixels.dtype} {list(pixels.shape)}; uint8 {list(self._row_shape)} was announced"
            )
        self._queues.write(self._request.tasks[index], pixels)

    async def result(self) -> EngineTokens:
        """Waits for the ids or latents of all images. Raises as the calls of ``Engine`` do."""
        return EngineTokens(tokens=await self._engine.wait(self._request), timing=self._request.timing)

    def __enter__(self) -> EncodeTicket:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.abandon(self._request)
        if not self._request.future.cancel() and not self._request.future.cancelled():
            self._request.future.exception()  # mark it as retrieved, or asyncio would log it


class Engine:
    """Batches requests for the workers behind ``links``. ``deadline`` is a time of ``clock`` (monotonic).

    The calls raise ``QueueFull``, ``DeadlineExceeded``, ``EngineStopped``, ``DeviceFailed`` or ``WorkerCrashed``, and
    ``ValueError`` for an array of another shape or type. Cancelling a call drops its images that no device has started.

    ``limits`` are those of all lanes or of each. Called in the event loop: ``on_model_info`` with what a worker reports
    about its models, ``on_failure`` with the error that ended the engine for good, after which only a new process helps.
    """

    def __init__(
        self,
        links: Sequence[Link],
        *,
        limits: LaneLimits | Mapping[LaneName, LaneLimits] | None = None,
        observer: EngineObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_model_info: Callable[[Any], None] = lambda _: None,
        on_failure: Callable[[BaseException], None] = lambda _: None,
    ) -> None:
        self._links = list(links)
        self._on_model_info = on_model_info
        self._on_failure = on_failure
        shares_memory = any(link.shares_memory for link in links)
        self._queues = Queues(limits or LaneLimits(), observer or EngineObserver(), clock, shared=shares_memory)
        self._admission = {
            name: AdmissionQueue(lane, partial(self._free_images, lane)) for name, lane in self._queues.lanes.items()
        }
        self._down: dict[str, LinkDown] = {}
        self._state = EngineState(name="starting", reason="not started")
        self._opened: asyncio.Future[None] | None = None
        runners = [
            LinkRunner(
                queues=self._queues, link=link, on_up=self._note_up, on_down=self._note_down, on_death=self._fail
            )
            for link in self._links
        ]
        self._threads = [threading.Thread(target=runner.run, name="device", daemon=True) for runner in runners]

    # --- called in the event loop ------------------------------------------------------------------------------------

    @property
    def state(self) -> EngineState:
        """The lifecycle state."""
        return self._state

    def start(self) -> None:
        """Starts opening the devices. Called once, in the event loop that will await results. Raises ``RuntimeError`` if it
        has been started or stopped before.
        """
        if self._queues.loop is not None or self._state.name != "starting":
            raise RuntimeError(f"an engine is started once; this one is {self._state.name}")
        self._queues.loop = asyncio.get_running_loop()
        self._opened = self._queues.loop.create_future()
        self._state = EngineState(name="starting", reason="the models are being loaded")
        for thread in self._threads:
            thread.start()

    async def ready(self) -> None:
        """Waits until requests are admitted. Raises ``EngineStopped`` if the engine failed or was stopped."""
        if self._opened is not None:
            await asyncio.shield(self._opened)
        if not self._state.is_ready:
            raise self._stopped()

    async def stop(self, drain_seconds: float) -> None:
        """Rejects new requests, finishes admitted ones within the time, and fails the rest. A batch that outlasts the drain
        is left to its worker.
        """
        until = time.monotonic() + drain_seconds
        with self._queues.wake:
            if not self._queues.is_over:
                self._state = EngineState(name="draining", reason="the service is shutting down")
                self._queues.is_draining = True
            self._queues.wake.notify_all()
        started = [thread for thread in self._threads if thread.ident is not None]
        try:
            if started:
                await asyncio.to_thread(self._wait_until_drained, until)
        finally:
            self._end("stopped", "the service has shut down")
            for link in self._links:
                link.interrupt()
        for thread in started:
            await asyncio.to_thread(thread.join, max(0.0, until - time.monotonic()))
        await asyncio.sleep(0)  # the calls that the threads queued in the loop run first

    def snapshot(self) -> dict[LaneName, LaneSnapshot]:
        """How many images wait and are being processed, by lane."""
        return self._queues.snapshot()

    async def wait_for_room(self, lane: LaneName, *, deadline: float) -> None:
        """Waits a moment for room for an image in a full lane, or raises ``QueueFull``. For callers that have something
        expensive to do first: the calls below wait themselves.
        """
        await self._wait_for_room(lane, 1, deadline)
        with self._queues.wake:
            self._queues.lanes[lane].check_room(1, 0, wait=self._expected_wait)

    async def _wait_for_room(self, lane: LaneName, images: int, deadline: float) -> None:
        await self._admission[lane].wait(images, deadline - self._queues.clock())

    async def open_encode(self, count: int, *, image_size: int, deadline: float, latents: bool = False) -> EncodeTicket:
        """Reserves room for ``count`` images of S x S pixels before they are decoded. ``latents``: instead of ids."""
        await self._wait_for_room("encode", count, deadline)
        row_shape = (image_size, image_size, 3)
        request = self._admit("encode", [latents] * count, image_size**2 * 3, deadline)
        return EncodeTicket(self, self._queues, request, row_shape)

    async def decode(self, tokens: Ids | Latents, *, deadline: float) -> EngineImages:
        """Ids int64 [n, K], or latents float32 [n, K, C], n >= 1."""
        if (str(tokens.dtype), tokens.ndim) not in (("int64", 2), ("float32", 3)):
            raise ValueError(
                f"tokens are {tokens.dtype} {list(tokens.shape)}; int64 [n, K] or float32 [n, K, C] expected"
            )
        await self._wait_for_room("decode", len(tokens), deadline)
        request = self._admit("decode", list(tokens), tokens[:1].nbytes, deadline)
        return EngineImages(images=await self.wait(request), timing=request.timing)

    async def generate(
        self, items: Sequence[GenerateItem], *, deadline: float, on_step: StepCallback | None = None
    ) -> EngineTokens:
        """``on_step(index, step, tokens, sampled)`` is called in the event loop after every sampling step of an item, with
        ``Stepped.tokens`` and ``Stepped.sampled`` of its row.
        """
        await self._wait_for_room("generate", len(items), deadline)
        request = self._admit("generate", items, 0, deadline, on_step)
        return EngineTokens(tokens=await self.wait(request), timing=request.timing)

    def _admit(
        self,
        lane: LaneName,
        payloads: Sequence[Any],
        num_bytes: int,
        deadline: float,
        on_step: StepCallback | None = None,
    ) -> EngineRequest:
        if not payloads:
            raise ValueError("a request has at least one image")
        now = self._queues.clock()
        if now >= deadline:
            self._queues.observer.rejected(lane, "deadline")
            raise DeadlineExceeded(lane=lane, stage="admission")
        request = EngineRequest(
            lane=lane,
            size=len(payloads),
            deadline=deadline,
            admitted_at=now,
            future=asyncio.get_running_loop().create_future(),
            on_step=on_step,
        )
        with self._queues.wake:
            if not self._state.is_ready:
                self._queues.observer.rejected(lane, "stopped")
                raise self._stopped()
            self._queues.lanes[lane].admit(request, payloads, num_bytes, wait=self._expected_wait)
            request.caller = self._queues.observer.caller()
            self._queues.requests.add(request)
            self._queues.wake.notify_all()
        return request

    async def wait(self, request: EngineRequest) -> Any:
        """Waits for a request's results, an array [n, ...], until its deadline. Raises its error."""
        # asyncio.timeout costs three times as much, which would be the largest share of a small image's cost.
        timer = request.future.get_loop().call_later(request.deadline - self._queues.clock(), self._expire, request)
        try:
            await request.future
        except asyncio.CancelledError:
            self.abandon(request)
            raise
        else:
            return request.results
        finally:
            timer.cancel()
            del request  # else a cycle: the request holds its error, which holds this frame

    def _expire(self, request: EngineRequest) -> None:
        with self._queues.wake:
            request.expire()
            self._queues.drop(request)
        request.resolve()

    def abandon(self, request: EngineRequest) -> None:
        """Drops a request that no caller waits for any more, unless it has ended."""
        with self._queues.wake:
            if not request.ended:
                request.abandoned = True
                self._queues.drop(request)

    def _free_images(self, lane: Lane) -> int:
        """Room in a lane, for requests that wait for it; they wait no longer when the engine admits none."""
        with self._queues.wake:
            return lane.free_images() if self._state.is_ready else lane.limits.max_images

    def _expected_wait(self) -> float:
        """Seconds until everything queued now is done, at the rate of recent batches."""
        waiting = sum(lane.queued_images * lane.seconds_per_image for lane in self._queues.lanes.values())
        return waiting / max(1, len(self._queues.up))

    def _stopped(self) -> EngineStopped:
        return EngineStopped(self._state.reason or "the engine is not ready")

    # --- called in the threads of the links --------------------------------------------------------------------------

    def _wait_until_drained(self, until: float) -> None:
        with self._queues.wake:
            self._queues.wake.wait_for(
                lambda: self._queues.is_over or not self._queues.has_work, max(0.0, until - time.monotonic())
            )

    def _note_up(self, link: Link, info: Any) -> None:
        with self._queues.wake:
            self._down.pop(link.name, None)
            self._queues.add_worker(link.name, getattr(info, "batch_limits", {}))

        def set_ready() -> None:
            self._on_model_info(info)
            with self._queues.wake:
                if self._state.name in ("starting", "failed") and not self._queues.is_over and self._queues.up:
                    self._state = EngineState(name="ready")
            self._set_opened()

        # The state becomes ready in the event loop, after the model information is set: whoever sees "ready" can read it.
        self._queues.call_in_loop(set_ready)

    def _note_down(self, link: Link, down: LinkDown) -> None:
        with self._queues.wake:
            self._queues.remove_worker(link.name)
            self._down[link.name] = down
            if self._queues.up or self._state.name in ("draining", "stopped") or self._queues.is_over:
                return
            reason = "; ".join(f"{name}: {error}" for name, error in self._down.items())
            has_failed = all(error.is_failure for error in self._down.values())
            is_new = self._state.reason != reason
            self._state = EngineState(name="failed" if has_failed else "starting", reason=reason)
        if is_new:
            log.warning("no worker is left: %s", reason)

    def _set_opened(self) -> None:
        if self._opened is not None and not self._opened.done():
            self._opened.set_result(None)

    def _fail(self, reason: str, error: BaseException) -> None:
        self._end("failed", reason)
        self._queues.call_in_loop(partial(self._on_failure, error))

    def _end(self, name: Literal["stopped", "failed"], reason: str) -> None:
        with self._queues.wake:
            if not self._queues.is_over:
                self._state = EngineState(name=name, reason=reason)
            self._queues.end(EngineStopped(reason))
        self._queues.call_in_loop(self._set_opened)
