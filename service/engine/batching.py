"""The engine: requests to batches, batches to workers, results back. One core for workers of any kind.

::

    event loop and decoding threads               a thread for each link                     workers
    open_encode() ─> admit ─> rows of a block ─┐
    decode() ──────> admit ─> ids ─────────────┼─> fair turns ─> take ─> link.send ────────> run
    generate() ────> admit ─> rows of a step ──┘                 settle <─ link.receive <──── answer
        ^──────────── one call_soon_threadsafe a batch ─────────────┘

A link's thread pulls: the moment its worker is free it takes what gathered while it was busy, so there is no waiting
window to tune. A batch that is full is handed over while the one before still runs; any other grows until it is taken.
A turn is one batch of encode or decode, or one sampling step of generate, so that no lane waits longer for another than
that. All sides meet in one condition and nowhere else.

A worker's death costs a retry: what it was running is run again elsewhere, image by image, so that one that kills
workers is found, and refused when it has killed its second.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from service.engine.encode_lane import EncodeLane
from service.engine.errors import DeadlineExceeded, DeviceFailed, EngineStopped, WorkerCrashed
from service.engine.jobs import Link, LinkDown, Outcome
from service.engine.lanes import Batch, Lane, LaneLimits
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
    Stepped,
)
from service.engine.token_lanes import DecodeLane, GenerateLane
from service.engine.work import Item, Work

__all__ = ["BatchingEngine", "EncodeTicket"]

log = logging.getLogger(__name__)

# How long an idle link's thread sleeps before it looks whether its worker is still there.
_IDLE_CHECK_SECONDS = 0.25


class EncodeTicket:
    """See ``service.engine.protocol.EncodeTicket``."""

    def __init__(self, engine: BatchingEngine, work: Work, row_shape: tuple[int, ...]) -> None:
        self._engine = engine
        self._work = work
        self._row_shape = row_shape

    def put(self, index: int, pixels: Pixels) -> None:
        """See ``EncodeTicket``."""
        if pixels.dtype != np.uint8 or pixels.shape != self._row_shape:
            raise ValueError(
                f"an image is {pixels.dtype} {list(pixels.shape)}; uint8 {list(self._row_shape)} was announced"
            )
        self._engine.write(self._work.items[index], pixels)

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
    in memory that other processes can map; ``on_facts`` is called in the event loop with what a worker tells of its
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
        on_facts: Callable[[Any], None] | None = None,
    ) -> None:
        self._links = list(links)
        self._observer = observer or NullObserver()
        self._clock = clock
        self._on_facts = on_facts
        names: tuple[LaneName, ...] = get_args(LaneName)
        by_lane = limits if isinstance(limits, Mapping) else dict.fromkeys(names, limits or LaneLimits())
        self._encode = EncodeLane(by_lane["encode"], self._observer, shared=shared)
        self._generate = GenerateLane(by_lane["generate"], self._observer)
        decode = DecodeLane(by_lane["decode"], self._observer)
        self._lanes: dict[LaneName, Lane] = {"encode": self._encode, "decode": decode, "generate": self._generate}
        self._turns = list(self._lanes.values())
        self._works: set[Work] = set()
        self._up: set[str] = set()
        self._down: dict[str, LinkDown] = {}
        self._is_over = False  # nothing will run any more
        self._wake = threading.Condition()
        self._state = EngineState(name="starting", reason="not started")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened: asyncio.Future[None] | None = None
        self._threads = [
            threading.Thread(target=self._serve, args=(link,), name="device", daemon=True) for link in self._links
        ]

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
        with self._wake:
            if not self._is_over:
                self._state = EngineState(name="draining", reason="the service is shutting down")
            self._wake.notify_all()
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
        with self._wake:
            return EngineSnapshot(**{name: lane.snapshot() for name, lane in self._lanes.items()})

    @property
    def workers_up(self) -> int:
        """Workers that can be given work now."""
        return len(self._up)

    @property
    def blocks_in_use(self) -> int:
        """Blocks of memory that hold images; none at rest."""
        with self._wake:
            return self._encode.pool.in_use

    def open_encode(self, count: int, *, image_size: int, deadline: float) -> EncodeTicket:
        """See ``Engine``."""
        row_shape = (image_size, image_size, 3)
        return EncodeTicket(self, self._admit("encode", [None] * count, image_size**2 * 3, deadline), row_shape)

    async def encode(self, images: Pixels, *, deadline: float) -> Encoded:
        """See ``Engine``."""
        _check(images, "images", dtype=np.uint8, ndim=4)
        work = self._admit("encode", [None] * len(images), images[:1].nbytes, deadline)
        self._write_all(work.items, images)
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
        with self._wake:
            if not self._state.is_ready:
                self._observer.rejected(name, "stopped")
                raise EngineStopped(self._why())
            self._lanes[name].admit(work, payloads, num_bytes, wait=self._expected_wait)
            self._works.add(work)
            self._wake.notify_all()
        return work

    async def wait(self, work: Work, name: LaneName) -> None:
        """Waits for all results of a request, until its deadline. Raises why there are none."""
        try:
            async with asyncio.timeout(work.deadline - self._clock()):
                await work.future
        except TimeoutError:
            late = DeadlineExceeded(lane=name, stage="device" if work.taken else "queue")
            with self._wake:
                work.fail(late)
                self._drop(work, name)
            raise DeadlineExceeded(lane=name, stage=late.stage) from None
        except asyncio.CancelledError:
            self.abandon(work, name)
            raise
        finally:
            # The request's error holds this frame, and the request its error: uncut, it would stay until the garbage
            # collector comes.
            del work

    def abandon(self, work: Work, name: LaneName) -> None:
        """Nobody waits for a request any more; nothing happens if it has ended."""
        with self._wake:
            if not work.ended:
                work.abandoned = True
                self._drop(work, name)

    def _drop(self, work: Work, name: LaneName) -> None:
        self._works.discard(work)
        if not self._is_over:
            self._lanes[name].discard(work)
        self._wake.notify_all()

    def write(self, item: Item, pixels: Pixels) -> None:
        """Copies an image into the batch that is being filled; in any thread."""
        with self._wake:
            block = None if self._is_over else self._encode.claim(item, pixels.shape, self._clock())
        if block is None:
            return
        try:
            block.rows[item.row] = pixels
        finally:
            with self._wake:
                self._encode.written(item)
                self._wake.notify_all()

    def _write_all(self, items: Sequence[Item], images: Pixels) -> None:
        """The same for all images of a request, which so come into as few batches as they can."""
        now = self._clock()
        with self._wake:
            blocks = [self._encode.claim(item, images.shape[1:], now) for item in items]
        try:
            for block, item, pixels in zip(blocks, items, images, strict=True):
                if block is not None:
                    block.rows[item.row] = pixels
        finally:
            with self._wake:
                for block, item in zip(blocks, items, strict=True):
                    if block is not None:
                        self._encode.written(item)
                self._wake.notify_all()

    def _expected_wait(self) -> float:
        """Seconds until the workers have done what waits now, at the pace of their recent batches."""
        waiting = sum(lane.queued_images * lane.seconds_per_image for lane in self._turns)
        return waiting / max(1, len(self._up))

    def _why(self) -> str:
        return self._state.reason or "the engine takes no work"

    # --- a link's side -----------------------------------------------------------------------------------------------

    def _serve(self, link: Link) -> None:
        doing = "the device cannot be opened"
        try:
            while not self._is_over:
                try:
                    facts = link.open()
                    doing = "the device thread has died"
                    self._note_up(link, facts)
                    self._run_batches(link)
                except LinkDown as down:
                    self._note_down(link, down)
                else:
                    return
        except BaseException as error:
            log.exception("%s", doing)
            self._end("failed", f"{doing}: {error!r}" if doing.endswith("died") else f"{doing}: {error}")
        finally:
            link.close()

    def _run_batches(self, link: Link) -> None:
        """Keeps a worker busy until the engine is drained."""
        sent: deque[Batch] = deque()
        try:
            while True:
                while len(sent) < link.depth and (batch := self._next_batch(link, is_idle=not sent)) is not None:
                    try:
                        job = batch.job()
                    except Exception as error:
                        self._complete(batch, Outcome(seconds=0.0, error=error))
                        continue
                    try:
                        link.send(job)
                    except LinkDown:
                        self._put_back([batch])
                        raise
                    sent.append(batch)
                if not sent:
                    return
                outcome = link.receive()
                self._complete(sent.popleft(), outcome)
        except LinkDown:
            if sent and link.had_begun():
                self._retry(sent.popleft())
            self._put_back(sent)
            raise

    def _next_batch(self, link: Link, *, is_idle: bool) -> Batch | None:
        """The batch whose turn it is. For an idle worker it waits for one, and gives None when nothing is left to
        drain; for a busy one there is none but a full one.
        """
        with self._wake:
            while not self._is_over:
                if is_idle and not link.is_alive():
                    raise LinkDown("the worker has gone")
                patience = _IDLE_CHECK_SECONDS
                due = None
                now = self._clock()
                for lane in self._turns:
                    seconds = lane.seconds_until_due(now, only_full=not is_idle)
                    if seconds == 0.0:
                        due = lane
                        break
                    if seconds is not None:
                        patience = min(patience, seconds)
                if due is not None:
                    if (batch := self._take(due)) is not None:
                        return batch
                elif not is_idle or (self._state.name == "draining" and not self._has_work):
                    return None
                else:
                    self._wake.wait(patience)
            return None

    def _take(self, lane: Lane) -> Batch | None:
        # The lane goes to the end of the round.
        self._turns.remove(lane)
        self._turns.append(lane)
        expired: list[Work] = []
        batch = lane.take(self._clock(), expired)
        if batch.block is not None and not batch.items:
            while batch.block.writing and not self._is_over:
                self._wake.wait(_IDLE_CHECK_SECONDS)
            if not self._is_over:
                self._encode.fill(batch, self._clock(), expired)
        self._settle(lane, expired)
        self._wake.notify_all()
        return batch if batch.items else None

    def _complete(self, batch: Batch, outcome: Outcome) -> None:
        lane, items, result = batch.lane, batch.items, outcome.result
        self._observer.batch(lane.name, len(items), outcome.seconds)
        if result is not None and not isinstance(result, Stepped):
            self._put_results(items, result)
        with self._wake:
            if self._is_over:
                return
            for work in {item.work for item in items}:
                work.note_batch(len(items), outcome.seconds)
            reports: list[Callable[[], None]] = []
            if outcome.error is not None:
                ended = self._fail(batch, outcome.error)
            elif isinstance(result, Stepped):
                ended, reports = self._advance(items, result)
            else:
                if result is None:
                    self._expire(batch)
                for item in items:
                    lane.finish(item)
                ended = len(items)
            lane.note_cost(ended, outcome.seconds)
            self._settle(lane, (item.work for item in items), reports)
            self._wake.notify_all()

    def _put_results(self, items: Sequence[Item], rows: npt.NDArray[Any]) -> None:
        """Copies results to their requests; a large copy is made without the lock."""
        with self._wake:
            wanted = [(item, row) for item, row in zip(items, rows, strict=True) if not item.work.ended]
            places = [item.work.results_like(row) for item, row in wanted]
        for (item, row), place in zip(wanted, places, strict=True):
            place[item.index] = row
        with self._wake:
            for item, _ in wanted:
                item.work.note_result()

    def _advance(self, items: Sequence[Item], stepped: Stepped) -> tuple[int, list[Callable[[], None]]]:
        """Rows have made a step; how many were finished by it, and what their waiters are told."""
        reports: list[Callable[[], None]] = []
        rows = zip(items, stepped.tokens, stepped.sampled, stepped.finished.tolist(), strict=True)
        for item, tokens, sampled, is_finished in rows:
            self._generate.advance(item, tokens, finished=is_finished)
            work = item.work
            if work.ended:
                continue
            if work.on_step is not None:
                reports.append(partial(work.report_step, item.index, item.step, tokens, sampled))
            if is_finished:
                work.results_like(tokens)[item.index] = tokens
                work.note_result()
        return int(stepped.finished.sum()), reports

    def _fail(self, batch: Batch, error: Exception) -> int:
        """The device raised: an image alone fails its request; of several, each is tried alone."""
        lane, items = batch.lane, batch.items
        if len(items) > 1:
            log.warning("a %s batch of %d failed (%r); its images are run one by one", lane.name, len(items), error)
            for item in items:
                lane.retry_alone(item)
            return 0
        log.error("the device failed on one image of lane %s", lane.name, exc_info=error)
        failure = DeviceFailed(f"the device failed: {error}")
        failure.__cause__ = error
        items[0].work.fail(failure)
        lane.finish(items[0])
        return 1

    def _expire(self, batch: Batch) -> None:
        """The worker found that nobody waits any more."""
        for work in {item.work for item in batch.items}:
            work.fail(DeadlineExceeded(lane=batch.lane.name, stage="queue"))
        for item in batch.items:
            batch.lane.note_abandoned(item.work)

    def _retry(self, batch: Batch) -> None:
        """A worker died over a batch: each image is tried once more, alone."""
        with self._wake:
            if self._is_over:
                return
            for item in batch.items:
                item.crashes += 1
                if item.crashes > 1 and not item.work.ended:
                    log.error("an image of lane %s has ended two workers, and is refused", batch.lane.name)
                    item.work.fail(WorkerCrashed("the worker died over an image of this request, and so did the next"))
                if item.work.ended:
                    batch.lane.finish(item)
                else:
                    batch.lane.retry_alone(item)
            self._settle(batch.lane, (item.work for item in batch.items))
            self._wake.notify_all()

    def _put_back(self, batches: Iterable[Batch]) -> None:
        with self._wake:
            if self._is_over:
                return
            for batch in reversed(list(batches)):
                batch.lane.put_back(batch)
            self._wake.notify_all()

    # --- where the sides meet ----------------------------------------------------------------------------------------

    @property
    def _has_work(self) -> bool:
        return any(lane.queued_images or lane.active_images for lane in self._turns)

    def _wait_until_drained(self, until: float) -> None:
        with self._wake:
            self._wake.wait_for(lambda: self._is_over or not self._has_work, max(0.0, until - time.monotonic()))

    def _note_up(self, link: Link, facts: Any) -> None:
        with self._wake:
            self._up.add(link.name)
            self._down.pop(link.name, None)
            self._generate.workers = len(self._up)
            for name, size in getattr(facts, "batch_limits", {}).items():
                lane = self._lanes[cast("LaneName", name)]
                if lane.limits.max_batch_size is None:
                    lane.batch_size = size
            self._wake.notify_all()

        def tell() -> None:
            if self._on_facts is not None:
                self._on_facts(facts)
            with self._wake:
                if self._state.name in ("starting", "failed") and not self._is_over and self._up:
                    self._state = EngineState(name="ready")
            self._tell_opened()

        # Ready is said in the event loop, after the facts: whoever sees it can rely on them.
        self._in_loop(tell)

    def _note_down(self, link: Link, down: LinkDown) -> None:
        with self._wake:
            self._up.discard(link.name)
            self._down[link.name] = down
            self._generate.workers = max(1, len(self._up))
            if self._up or self._state.name in ("draining", "stopped") or self._is_over:
                return
            reason = "; ".join(f"{name}: {why}" for name, why in self._down.items())
            broken = all(why.is_failure for why in self._down.values())
            is_news = self._state.reason != reason
            self._state = EngineState(name="failed" if broken else "starting", reason=reason)
        if is_news:
            log.warning("no worker is left: %s", reason)

    def _settle(self, lane: Lane, works: Iterable[Work], reports: Sequence[Callable[[], None]] = ()) -> None:
        """Drops what still waits of requests that have ended, and tells their waiters."""
        ended = {work for work in works if work.ended}
        for work in ended:
            lane.discard(work)
        self._tell(ended, reports)

    def _tell(self, ended: set[Work], reports: Sequence[Callable[[], None]] = ()) -> None:
        """Reports sampling steps, then wakes waiters, with one call for all of them."""
        self._works -= ended

        def tell() -> None:
            for report in reports:
                report()
            for work in ended:
                work.settle()

        if ended or reports:
            self._in_loop(tell)

    def _in_loop(self, function: Callable[[], None]) -> None:
        # A loop that was closed before a held device came back has no waiters left.
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(function)

    def _tell_opened(self) -> None:
        if self._opened is not None and not self._opened.done():
            self._opened.set_result(None)

    def _end(self, name: Literal["stopped", "failed"], reason: str) -> None:
        """Nothing will run any more: every waiter is told."""
        with self._wake:
            if not self._is_over:
                self._state = EngineState(name=name, reason=reason)
            self._is_over = True
            for work in self._works:
                work.fail(EngineStopped(reason))
            self._tell(set(self._works))
            for lane in self._turns:
                lane.clear()
            self._encode.pool.close()
            self._wake.notify_all()
        self._in_loop(self._tell_opened)


def _check(array: npt.NDArray[Any], name: str, *, dtype: npt.DTypeLike, ndim: int) -> None:
    if array.dtype != dtype or array.ndim != ndim:
        raise ValueError(
            f"{name} are {array.dtype} {list(array.shape)}; {np.dtype(dtype)} of {ndim} dimensions expected"
        )
