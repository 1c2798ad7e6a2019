"""The engine: requests to batches, batches to workers, results back. One core for workers of any kind.

::

    event loop and decoding threads               a thread for each link                     workers
    open_encode() ─> admit ─> rows of a block ─┐
    decode() ──────> admit ─> ids ─────────────┼─> fair turns ─> take ─> link.send ────────> run
    generate() ────> admit ─> rows of a step ──┘                 settle <─ link.receive <──── answer
        ^──────────── one call_soon_threadsafe a batch ─────────────┘

All sides meet in ``queues.py`` and nowhere else; what a link's thread does is in ``runner.py``.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from service.engine.errors import DeadlineExceeded, EngineStopped
from service.engine.jobs import Link, LinkDown
from service.engine.lanes import LaneLimits
from service.engine.protocol import (
    Decoded,
    Encoded,
    EngineObserver,
    EngineSnapshot,
    EngineState,
    Generated,
    GenerateItem,
    Ids,
    LaneName,
    NullObserver,
    Pixels,
    StepCallback,
)
from service.engine.queues import Queues
from service.engine.runner import LinkRunner
from service.engine.work import Work

__all__ = ["BatchingEngine", "EncodeTicket"]

log = logging.getLogger(__name__)


class EncodeTicket:
    """See ``service.engine.protocol.EncodeTicket``."""

    def __init__(self, engine: BatchingEngine, queues: Queues, work: Work, row_shape: tuple[int, ...]) -> None:
        self._engine = engine
        self._queues = queues
        self._work = work
        self._row_shape = row_shape

    def put(self, index: int, pixels: Pixels) -> None:
        """See ``EncodeTicket``."""
        if pixels.dtype != np.uint8 or pixels.shape != self._row_shape:
            raise ValueError(
                f"an image is {pixels.dtype} {list(pixels.shape)}; uint8 {list(self._row_shape)} was announced"
            )
        self._queues.write([self._work.items[index]], pixels[None])

    async def result(self) -> Encoded:
        """See ``EncodeTicket``."""
        await self._engine.wait(self._work, "encode")
        return Encoded(tokens=self._work.results, timing=self._work.timing)

    def __enter__(self) -> EncodeTicket:
        return self

    def __exit__(self, *_: object) -> None:
        """Abandons what has no result yet."""
        self._engine.abandon(self._work, "encode")
        if not self._work.future.cancel() and not self._work.future.cancelled():
            self._work.future.exception()  # or asyncio would complain of an error that nobody asked for


class BatchingEngine:
    """See ``service.engine.Engine``. ``limits`` are those of every lane, or one for each; ``shared``: images are gathered
    in memory that other processes can map; ``on_model_info`` is called in the event loop with what a worker tells of its
    models.
    """

    def __init__(
        self,
        links: Sequence[Link],
        *,
        shared: bool,
        limits: LaneLimits | Mapping[LaneName, LaneLimits] | None = None,
        observer: EngineObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_model_info: Callable[[Any], None] | None = None,
    ) -> None:
        self._links = list(links)
        self._on_model_info = on_model_info
        self._queues = Queues(limits or LaneLimits(), observer or NullObserver(), clock, shared=shared)
        self._up: set[str] = set()
        self._down: dict[str, LinkDown] = {}
        self._state = EngineState(name="starting", reason="not started")
        self._opened: asyncio.Future[None] | None = None
        runners = [
            LinkRunner(
                self._queues, link, on_up=self._note_up, on_down=self._note_down, on_death=partial(self._end, "failed")
            )
            for link in self._links
        ]
        self._threads = [threading.Thread(target=runner.run, name="device", daemon=True) for runner in runners]

    # --- the event loop's side ---------------------------------------------------------------------------------------

    @property
    def state(self) -> EngineState:
        """See ``Engine``."""
        return self._state

    def start(self) -> None:
        """See ``Engine``. Raises ``RuntimeError`` if it has been started or stopped before."""
        if self._queues.loop is not None or self._state.name != "starting":
            raise RuntimeError(f"an engine is started once; this one is {self._state.name}")
        self._queues.loop = asyncio.get_running_loop()
        self._opened = self._queues.loop.create_future()
        self._state = EngineState(name="starting", reason="the models are being loaded")
        for thread in self._threads:
            thread.start()

    async def ready(self) -> None:
        """See ``Engine``."""
        if self._opened is not None:
            await asyncio.shield(self._opened)
        if not self._state.is_ready:
            raise EngineStopped(self._why())

    async def stop(self, drain_seconds: float) -> None:
        """See ``Engine``. A batch that outlives the drain is left to its worker; its waiters have been told."""
        until = time.monotonic() + drain_seconds
        with self._queues.wake:
            if not self._queues.is_over:
                self._state = EngineState(name="draining", reason="the service is shutting down")
                self._queues.is_draining = True
            self._queues.wake.notify_all()
        try:
            if any(thread.ident is not None for thread in self._threads):
                await asyncio.to_thread(self._wait_until_drained, until)
        finally:
            self._end("stopped", "the service has shut down")
            for link in self._links:
                link.give_up()
        for thread in self._threads:
            if thread.ident is not None:
                await asyncio.to_thread(thread.join, max(0.0, until - time.monotonic()))
        # What the threads told the loop before they ended is still on its way to the waiters.
        await asyncio.sleep(0)

    def snapshot(self) -> EngineSnapshot:
        """See ``Engine``."""
        return self._queues.snapshot()

    @property
    def workers_up(self) -> int:
        """Workers that can be given work now."""
        return len(self._up)

    @property
    def blocks_in_use(self) -> int:
        """Blocks of memory that hold images; none at rest."""
        with self._queues.wake:
            return self._queues.encode.pool.in_use

    @property
    def blocks_made(self) -> int:
        """Blocks of memory that were ever needed at once."""
        return self._queues.encode.pool.size

    def open_encode(self, count: int, *, image_size: int, deadline: float) -> EncodeTicket:
        """See ``Engine``."""
        row_shape = (image_size, image_size, 3)
        work = self._admit("encode", [None] * count, image_size**2 * 3, deadline)
        return EncodeTicket(self, self._queues, work, row_shape)

    async def encode(self, images: Pixels, *, deadline: float) -> Encoded:
        """See ``Engine``."""
        _check(images, "images", dtype=np.uint8, ndim=4)
        work = self._admit("encode", [None] * len(images), images[:1].nbytes, deadline)
        self._queues.write(work.items, images)
        del images
        await self.wait(work, "encode")
        return Encoded(tokens=work.results, timing=work.timing)

    async def decode(self, tokens: Ids, *, deadline: float) -> Decoded:
        """See ``Engine``."""
        _check(tokens, "tokens", dtype=np.int64, ndim=2)
        work = self._admit("decode", list(tokens), tokens[:1].nbytes, deadline)
        await self.wait(work, "decode")
        return Decoded(images=work.results, timing=work.timing)

    async def generate(
        self, items: Sequence[GenerateItem], *, deadline: float, on_step: StepCallback | None = None
    ) -> Generated:
        """See ``Engine``."""
        work = self._admit("generate", items, 0, deadline, on_step)
        await self.wait(work, "generate")
        return Generated(tokens=work.results, timing=work.timing)

    def _admit(
        self,
        name: LaneName,
        payloads: Sequence[Any],
        num_bytes: int,
        deadline: float,
        on_step: StepCallback | None = None,
    ) -> Work:
        if not payloads:
            raise ValueError("a request has at least one image")
        now = self._queues.clock()
        if now >= deadline:
            self._queues.observer.rejected(name, "deadline")
            raise DeadlineExceeded(lane=name, stage="admission")
        work = Work(
            size=len(payloads),
            deadline=deadline,
            admitted=now,
            future=asyncio.get_running_loop().create_future(),
            on_step=on_step,
        )
        with self._queues.wake:
            if not self._state.is_ready:
                self._queues.observer.rejected(name, "stopped")
                raise EngineStopped(self._why())
            self._queues.lanes[name].admit(work, payloads, num_bytes, wait=self._expected_wait)
            work.caller = self._queues.observer.caller()
            self._queues.works.add(work)
            self._queues.wake.notify_all()
        return work

    async def wait(self, work: Work, name: LaneName) -> None:
        """Waits for all results of a request, until its deadline. Raises why there are none."""
        # A timer of its own costs a third of asyncio.timeout, which would be the dearest thing done for a small image.
        timer = work.future.get_loop().call_later(work.deadline - self._queues.clock(), self._expire, work, name)
        try:
            await work.future
        except asyncio.CancelledError:
            self.abandon(work, name)
            raise
        finally:
            timer.cancel()
            # The request's error holds this frame, and the request its error: uncut, it would stay until the garbage
            # collector comes.
            del work

    def _expire(self, work: Work, name: LaneName) -> None:
        with self._queues.wake:
            work.fail(DeadlineExceeded(lane=name, stage="device" if work.taken else "queue"))
            self._queues.drop(work, name)
        work.settle()

    def abandon(self, work: Work, name: LaneName) -> None:
        """Nobody waits for a request any more; nothing happens if it has ended."""
        with self._queues.wake:
            if not work.ended:
                work.abandoned = True
                self._queues.drop(work, name)

    def _expected_wait(self) -> float:
        """Seconds until the workers have done what waits now, at the pace of their recent batches."""
        waiting = sum(lane.queued_images * lane.seconds_per_image for lane in self._queues.turns)
        return waiting / max(1, len(self._up))

    def _why(self) -> str:
        return self._state.reason or "the engine takes no work"

    # --- what the links' threads tell --------------------------------------------------------------------------------

    def _wait_until_drained(self, until: float) -> None:
        with self._queues.wake:
            self._queues.wake.wait_for(
                lambda: self._queues.is_over or not self._queues.has_work, max(0.0, until - time.monotonic())
            )

    def _note_up(self, link: Link, info: Any) -> None:
        with self._queues.wake:
            self._up.add(link.name)
            self._down.pop(link.name, None)
            for name, size in getattr(info, "batch_limits", {}).items():
                lane = self._queues.lanes[cast("LaneName", name)]
                if lane.limits.max_batch_size is None:
                    lane.batch_size = size
            self._queues.wake.notify_all()

        def tell() -> None:
            if self._on_model_info is not None:
                self._on_model_info(info)
            with self._queues.wake:
                if self._state.name in ("starting", "failed") and not self._queues.is_over and self._up:
                    self._state = EngineState(name="ready")
            self._tell_opened()

        # The state becomes ready in the event loop, after the model information is set: whoever sees "ready" can read it.
        self._queues.in_loop(tell)

    def _note_down(self, link: Link, down: LinkDown) -> None:
        with self._queues.wake:
            self._up.discard(link.name)
            self._down[link.name] = down
            if self._up or self._state.name in ("draining", "stopped") or self._queues.is_over:
                return
            reason = "; ".join(f"{name}: {why}" for name, why in self._down.items())
            broken = all(why.is_failure for why in self._down.values())
            is_news = self._state.reason != reason
            self._state = EngineState(name="failed" if broken else "starting", reason=reason)
        if is_news:
            log.warning("no worker is left: %s", reason)

    def _tell_opened(self) -> None:
        if self._opened is not None and not self._opened.done():
            self._opened.set_result(None)

    def _end(self, name: Literal["stopped", "failed"], reason: str) -> None:
        with self._queues.wake:
            if not self._queues.is_over:
                self._state = EngineState(name=name, reason=reason)
            self._queues.end(EngineStopped(reason))
        self._queues.in_loop(self._tell_opened)


def _check(array: npt.NDArray[Any], name: str, *, dtype: npt.DTypeLike, ndim: int) -> None:
    if array.dtype != dtype or array.ndim != ndim:
        raise ValueError(
            f"{name} are {array.dtype} {list(array.shape)}; {np.dtype(dtype)} of {ndim} dimensions expected"
        )
