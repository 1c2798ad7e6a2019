"""The engine in one process: the lanes, and the thread that owns the device.

::

    event loop                        device thread
    encode() ─> admit ─> lane ──┐
    decode() ─> admit ─> lane ──┼──> fair turns ─> take what has gathered ─> device ─┐
    generate() > admit ─> lane ─┘                                                    │
        ^────────────────── one call_soon_threadsafe a batch ────────────────────────┘

The thread pulls: the moment it is free it takes what gathered while it was busy, so there is no waiting window to tune.
A turn is one batch of encode or decode, or one sampling step of all rows of generate, so that no lane waits longer for
another than that. Both sides meet in one condition and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from service.engine.errors import DeadlineExceeded, DeviceFailed, EngineStopped
from service.engine.lanes import Item, Lane, LaneLimits, Work
from service.engine.protocol import (
    Decoded,
    Device,
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
    Row,
    StepCallback,
)

__all__ = ["InlineEngine"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _ActiveRow:
    """An item of the generate lane between its first step and its last."""

    item: Item
    row: Row


class InlineEngine:
    """See ``service.engine.Engine``. ``device_factory`` is called in the device thread; ``limits`` are those of every
    lane, or one for each.
    """

    def __init__(
        self,
        device_factory: Callable[[], Device],
        *,
        limits: LaneLimits | Mapping[LaneName, LaneLimits] | None = None,
        observer: EngineObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device_factory = device_factory
        self._observer = observer or NullObserver()
        self._clock = clock
        names: tuple[LaneName, ...] = get_args(LaneName)
        by_lane = limits if isinstance(limits, Mapping) else dict.fromkeys(names, limits or LaneLimits())
        self._lanes = {name: Lane(name, by_lane[name], self._observer) for name in names}
        self._turns = list(self._lanes.values())
        self._batch: list[Item] = []
        self._rows: list[_ActiveRow] = []
        self._wake = threading.Condition()
        self._state = EngineState(name="starting", reason="not started")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened: asyncio.Future[None] | None = None
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    # --- the event loop's side ---------------------------------------------------------------------------------------

    @property
    def state(self) -> EngineState:
        """See ``Engine``."""
        return self._state

    def start(self) -> None:
        """See ``Engine``. Raises ``RuntimeError`` if it has been started or stopped before."""
        if self._loop is not None or self._state.name != "starting":
            raise RuntimeError(f"an engine is started once; this one is {self._state.name}")
        self._loop = asyncio.get_running_loop()
        self._opened = self._loop.create_future()
        self._state = EngineState(name="starting", reason="the models are being loaded")
        self._thread.start()

    async def ready(self) -> None:
        """See ``Engine``."""
        if self._opened is not None:
            await asyncio.shield(self._opened)
        if not self._state.is_ready:
            raise EngineStopped(self._why())

    async def stop(self, drain_seconds: float) -> None:
        """See ``Engine``. A batch that outlives the drain is left to its daemon thread; its waiters have been told."""
        with self._wake:
            if self._state.name in ("starting", "ready"):
                self._state = EngineState(name="draining", reason="the service is shutting down")
            self._wake.notify_all()
        try:
            if self._thread.ident is not None:
                await asyncio.to_thread(self._thread.join, drain_seconds)
        finally:
            self._end("stopped", "the service has shut down")
        # What the thread told the loop before it ended is still on its way to the waiters.
        await asyncio.sleep(0)

    def snapshot(self) -> EngineSnapshot:
        """See ``Engine``."""
        with self._wake:
            return EngineSnapshot(**{name: lane.snapshot() for name, lane in self._lanes.items()})

    async def encode(self, images: Pixels, *, deadline: float) -> Encoded:
        """See ``Engine``."""
        _check(images, "images", dtype=np.uint8, ndim=4)
        work = await self._submit("encode", list(images), images[:1].nbytes, deadline)
        return Encoded(tokens=_results(work), timing=work.timing)

    async def decode(self, tokens: Ids, *, deadline: float) -> Decoded:
        """See ``Engine``."""
        _check(tokens, "tokens", dtype=np.int64, ndim=2)
        work = await self._submit("decode", list(tokens), tokens[:1].nbytes, deadline)
        return Decoded(images=_results(work), timing=work.timing)

    async def generate(
        self, items: Sequence[GenerateItem], *, deadline: float, on_step: StepCallback | None = None
    ) -> Generated:
        """See ``Engine``."""
        work = await self._submit("generate", items, 0, deadline, on_step)
        return Generated(tokens=_results(work), timing=work.timing)

    async def _submit(
        self,
        name: LaneName,
        payloads: Sequence[Any],
        num_bytes: int,
        deadline: float,
        on_step: StepCallback | None = None,
    ) -> Work:
        if not payloads:
            raise ValueError("a request has at least one image")
        now = self._clock()
        if now >= deadline:
            self._observer.rejected(name, "deadline")
            raise DeadlineExceeded(lane=name, stage="admission")
        work = Work(
            size=len(payloads),
            deadline=deadline,
            admitted=now,
            future=asyncio.get_running_loop().create_future(),
            on_step=on_step,
        )
        lane = self._lanes[name]
        with self._wake:
            if not self._state.is_ready:
                self._observer.rejected(name, "stopped")
                raise EngineStopped(self._why())
            lane.admit(work, payloads, num_bytes, wait=self._expected_wait)
            self._wake.notify_all()
        try:
            async with asyncio.timeout(deadline - now):
                await work.future
        except TimeoutError:
            stage = "device" if work.taken else "queue"
            with self._wake:
                work.fail(DeadlineExceeded(lane=name, stage=stage))
                lane.discard(work)
            raise DeadlineExceeded(lane=name, stage=stage) from None
        except asyncio.CancelledError:
            with self._wake:
                work.abandoned = True
                lane.discard(work)
            raise
        else:
            return work
        finally:
            # The request's error holds this frame, and the request its error: uncut, its images would stay until the
            # garbage collector comes.
            del work

    def _expected_wait(self) -> float:
        """Seconds until the device has done what waits now, at the pace of its recent batches."""
        return sum(len(lane) * lane.seconds_per_image for lane in self._turns)

    def _why(self) -> str:
        return self._state.reason or "the engine takes no work"

    # --- the device thread's side ------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            device = self._device_factory()
        except BaseException as error:
            log.exception("the device cannot be opened")
            self._end("failed", f"the device cannot be opened: {error}")
            return
        with self._wake:
            if self._state.name == "starting":
                self._state = EngineState(name="ready")
        self._tell_opened()
        try:
            while (lane := self._next_turn()) is not None:
                if lane.name == "generate":
                    self._sampling_turn(device, lane)
                else:
                    self._batch_turn(device.encode if lane.name == "encode" else device.decode, lane)
        except BaseException as error:
            log.exception("the device thread has died")
            self._end("failed", f"the device thread has died: {error!r}")
            with self._wake:
                self._batch, self._rows = [], []
                for lane in self._turns:
                    lane.active_images = 0
        else:
            self._end("stopped", "the service has shut down")

    def _next_turn(self) -> Lane | None:
        """Waits for work; the lane whose turn it is, or None when there is nothing left to drain."""
        with self._wake:
            while True:
                for position, lane in enumerate(self._turns):
                    if lane or (lane.name == "generate" and self._rows):
                        # The lane goes to the end of the round.
                        self._turns.append(self._turns.pop(position))
                        return lane
                if self._state.name != "ready":
                    return None
                self._wake.wait()

    def _batch_turn(self, run: Callable[[Any], Any], lane: Lane) -> None:
        with self._wake:
            items, expired = lane.take(lane.limits.max_batch_size, self._clock())
            self._batch, lane.active_images = items, len(items)
        self._settle(expired)
        if items:
            started = time.perf_counter()
            self._run_items(run, items, lane.name)
            self._account(lane, items, time.perf_counter() - started, ended=len(items))
        with self._wake:
            self._batch, lane.active_images = [], 0
        self._settle(item.work for item in items if item.work.ended)

    def _run_items(self, run: Callable[[Any], Any], items: Sequence[Item], lane: str) -> None:
        """Runs a batch; if the device refuses it, each image alone, so that one bad image fails its own request."""
        try:
            results = list(zip(items, run(np.stack([item.payload for item in items])), strict=True))
        except Exception as error:
            if len(items) > 1:
                log.warning("a %s batch of %d failed (%r); its images are run one by one", lane, len(items), error)
                for item in items:
                    if not item.work.ended:
                        self._run_items(run, [item], lane)
                return
            log.exception("the device failed on one image of lane %s", lane)
            items[0].work.fail(_failure(error))
            return
        for item, result in results:
            if not item.work.ended:
                item.work.put(item.index, result)

    def _sampling_turn(self, device: Device, lane: Lane) -> None:
        with self._wake:
            now = self._clock()
            expired: list[Work] = []
            self._rows = [active for active in self._rows if lane.is_wanted(active.item, now, expired)]
            self._batch, late = lane.take(lane.limits.max_batch_size - len(self._rows), now)
            lane.active_images = len(self._rows) + len(self._batch)
        self._settle(expired + late)
        self._begin(device, self._batch)
        rows = self._rows
        if rows:
            started = time.perf_counter()
            self._step(device, rows)
            seconds = time.perf_counter() - started
            leaving = [active for active in rows if active.row.finished or active.item.work.failed]
            for active in leaving:
                if not active.item.work.ended:
                    active.item.work.put(active.item.index, active.row.tokens)
            self._account(lane, [active.item for active in rows], seconds, ended=len(leaving))
        ended = [item.work for item in (*self._batch, *(active.item for active in rows)) if item.work.ended]
        with self._wake:
            self._rows = [active for active in rows if not (active.row.finished or active.item.work.failed)]
            self._batch, lane.active_images = [], len(self._rows)
        self._settle(ended, reports=_step_reports(rows))

    def _begin(self, device: Device, items: Sequence[Item]) -> None:
        for item in items:
            if item.work.ended:
                continue
            try:
                row = device.begin(item.payload.label, item.payload.seed, item.payload.settings)
            except Exception as error:
                log.exception("the device cannot begin an image")
                item.work.fail(_failure(error))
            else:
                self._rows.append(_ActiveRow(item, row))

    def _step(self, device: Device, rows: Sequence[_ActiveRow]) -> None:
        """One step of all rows; if the device refuses, of each alone, so that one bad row fails its own request."""
        try:
            device.step([active.row for active in rows])
        except Exception as error:
            if len(rows) > 1:
                log.warning("a sampling step of %d rows failed (%r); they are run one by one", len(rows), error)
                for active in rows:
                    self._step(device, [active])
                return
            log.exception("the device failed on one row")
            rows[0].item.work.fail(_failure(error))

    def _account(self, lane: Lane, items: Sequence[Item], seconds: float, *, ended: int) -> None:
        for work in {id(item.work): item.work for item in items}.values():
            work.note_batch(len(items), seconds)
        self._observer.batch(lane.name, len(items), seconds)
        with self._wake:
            lane.note_cost(ended, seconds)

    # --- where the two meet ------------------------------------------------------------------------------------------

    def _settle(self, works: Iterable[Work], *, reports: Sequence[Callable[[], None]] = ()) -> None:
        """Reports sampling steps, then wakes waiters, with one call for all of them."""
        ended = list({id(work): work for work in works}.values())

        def settle() -> None:
            for report in reports:
                report()
            for work in ended:
                work.settle()

        if ended or reports:
            self._in_loop(settle)

    def _in_loop(self, function: Callable[[], None]) -> None:
        # A loop that was closed before a held device came back has no waiters left.
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(function)

    def _tell_opened(self) -> None:
        def tell() -> None:
            if self._opened is not None and not self._opened.done():
                self._opened.set_result(None)

        self._in_loop(tell)

    def _end(self, name: Literal["stopped", "failed"], reason: str) -> None:
        """Nothing will run any more: every waiter is told."""
        with self._wake:
            if self._state.name not in ("stopped", "failed"):
                self._state = EngineState(name=name, reason=reason)
            left = [work for lane in self._turns for work in lane.drain()]
            left += [item.work for item in self._batch] + [active.item.work for active in self._rows]
            for work in left:
                work.fail(EngineStopped(reason))
            self._wake.notify_all()
        self._settle(left)
        self._tell_opened()


def _check(array: npt.NDArray[Any], name: str, *, dtype: npt.DTypeLike, ndim: int) -> None:
    if array.dtype != dtype or array.ndim != ndim:
        raise ValueError(
            f"{name} are {array.dtype} {list(array.shape)}; {np.dtype(dtype)} of {ndim} dimensions expected"
        )


def _step_reports(rows: Sequence[_ActiveRow]) -> list[Callable[[], None]]:
    return [
        partial(active.item.work.report_step, active.item.index, active.row.step, active.row.tokens)
        for active in rows
        if active.item.work.on_step is not None and active.item.work.error is None
    ]


def _results(work: Work) -> Any:
    if work.results is None:  # a request that ended well has a result for each of its images
        raise EngineStopped("the request ended without a result")
    return work.results


def _failure(error: Exception) -> DeviceFailed:
    failure = DeviceFailed(f"the device failed: {error}")
    failure.__cause__ = error
    return failure
