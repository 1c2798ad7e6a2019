"""The thread of one link: takes batches, hands them to the worker, and settles what comes back.

It pulls: the moment its worker is free it takes what gathered while it was busy, so there is no waiting window to tune.
A batch that is full is handed over while the one before still runs; any other grows until it is taken. A turn is one
batch of encode or decode, or one sampling step of generate, so that no lane waits longer for another than that.

A worker's death costs a retry: what it was running is run again elsewhere, image by image, so that one that kills
workers is found, and refused when it has killed its second.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy.typing as npt

from service.engine.errors import DeadlineExceeded, DeviceFailed, WorkerCrashed
from service.engine.jobs import Link, LinkDown, Outcome
from service.engine.lanes import Batch, Lane
from service.engine.protocol import BatchReport, Stepped
from service.engine.queues import Queues
from service.engine.work import Item, Work

__all__ = ["LinkRunner"]

log = logging.getLogger(__name__)

# How long an idle link's thread sleeps before it looks whether its worker is still there.
_IDLE_CHECK_SECONDS = 0.25


class LinkRunner:
    """Keeps the worker behind ``link`` busy. ``on_up`` receives its model information, ``on_down`` why it is gone,
    ``on_death`` what ended the thread, and in which phase; all are called in the thread.
    """

    def __init__(
        self,
        queues: Queues,
        link: Link,
        *,
        on_up: Callable[[Link, Any], None],
        on_down: Callable[[Link, LinkDown], None],
        on_death: Callable[[str], None],
    ) -> None:
        self._queues = queues
        self._link = link
        self._on_up = on_up
        self._on_down = on_down
        self._on_death = on_death

    def run(self) -> None:
        """Serves the link until the engine is drained or over."""
        is_open = False
        try:
            while not self._queues.is_over:
                try:
                    info = self._link.open()
                    is_open = True
                    self._on_up(self._link, info)
                    self._run_batches()
                except LinkDown as down:
                    self._on_down(self._link, down)
                else:
                    return
        except BaseException as error:
            log.exception("the device thread has died" if is_open else "the device cannot be opened")
            self._on_death(
                f"the device thread has died: {error!r}" if is_open else f"the device cannot be opened: {error}"
            )
        finally:
            self._link.close()

    def _run_batches(self) -> None:
        """Keeps a worker busy until the engine is drained."""
        sent: deque[Batch] = deque()
        try:
            while True:
                while len(sent) < self._link.depth and (batch := self._next_batch(is_idle=not sent)) is not None:
                    started = time.perf_counter()
                    try:
                        job = batch.job()
                    except Exception as error:
                        self._begin(batch)
                        self._complete(batch, Outcome(seconds=0.0, error=error))
                        continue
                    try:
                        self._link.send(job)
                    except LinkDown:
                        self._put_back([batch])
                        raise
                    batch.hand_over_seconds = time.perf_counter() - started
                    sent.append(batch)
                if not sent:
                    return
                outcome = self._link.receive()
                done = sent.popleft()
                if sent:
                    self._begin(sent[0])
                self._complete(done, outcome)
        except LinkDown:
            if sent and self._link.had_begun():
                self._retry(sent.popleft())
            self._put_back(sent)
            raise

    def _next_batch(self, *, is_idle: bool) -> Batch | None:
        """The batch whose turn it is. For an idle worker it waits for one, and gives None when nothing is left to
        drain; for a busy one there is none but a full one.
        """
        with self._queues.wake:
            while not self._queues.is_over:
                if is_idle and not self._link.is_alive():
                    raise LinkDown("the worker has gone")
                patience = _IDLE_CHECK_SECONDS
                due = None
                now = self._queues.clock()
                for lane in self._queues.turns:
                    seconds = lane.seconds_until_due(now, only_full=not is_idle)
                    if seconds == 0.0:
                        due = lane
                        break
                    if seconds is not None:
                        patience = min(patience, seconds)
                if due is not None:
                    if (batch := self._take(due, is_idle=is_idle)) is not None:
                        return batch
                elif not is_idle or (self._queues.is_draining and not self._queues.has_work):
                    return None
                else:
                    self._queues.wake.wait(patience)
            return None

    def _take(self, lane: Lane, *, is_idle: bool) -> Batch | None:
        # The lane goes to the end of the round.
        self._queues.turns.remove(lane)
        self._queues.turns.append(lane)
        expired: list[Work] = []
        now = self._queues.clock()
        others_wait = any(other.seconds_until_due(now, only_full=False) == 0.0 for other in self._queues.turns[:-1])
        batch = lane.take(now, expired, others_wait=others_wait)
        if batch.block is not None and not batch.items:
            while batch.block.writing and not self._queues.is_over:
                self._queues.wake.wait(_IDLE_CHECK_SECONDS)
            if not self._queues.is_over:
                self._queues.encode.fill(batch, self._queues.clock(), expired)
        if is_idle:
            lane.begin(batch, self._queues.clock())
        else:
            lane.hold(batch)
        self._queues.settle(lane, expired)
        self._queues.wake.notify_all()
        return batch if batch.items else None

    def _begin(self, batch: Batch) -> None:
        """The worker has ended with all that was before it."""
        with self._queues.wake:
            if not self._queues.is_over:
                batch.lane.begin(batch, self._queues.clock())

    def _complete(self, batch: Batch, outcome: Outcome) -> None:
        lane, items, result = batch.lane, batch.items, outcome.result
        started = time.perf_counter()
        if result is not None and not isinstance(result, Stepped):
            self._put_results(items, result)
        works = {item.work for item in items}
        self._queues.observer.batch(
            BatchReport(
                lane=lane.name,
                device=self._link.name,
                images=len(items),
                hand_over_seconds=batch.hand_over_seconds,
                device_seconds=outcome.seconds,
                results_seconds=time.perf_counter() - started,
                callers=[work.caller for work in works if work.caller is not None],
            )
        )
        with self._queues.wake:
            if self._queues.is_over:
                return
            for work in works:
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
            self._queues.settle(lane, (item.work for item in items), reports)
            self._queues.wake.notify_all()

    def _put_results(self, items: Sequence[Item], rows: npt.NDArray[Any]) -> None:
        """Copies results to their requests; a large copy is made without the lock."""
        with self._queues.wake:
            wanted = [(item, row) for item, row in zip(items, rows, strict=True) if not item.work.ended]
            places = [item.work.results_like(row) for item, row in wanted]
        for (item, row), place in zip(wanted, places, strict=True):
            place[item.index] = row
        with self._queues.wake:
            for item, _ in wanted:
                item.work.note_result()

    def _advance(self, items: Sequence[Item], stepped: Stepped) -> tuple[int, list[Callable[[], None]]]:
        """Rows have made a step; how many were finished by it, and what their waiters are told."""
        reports: list[Callable[[], None]] = []
        rows = zip(items, stepped.tokens, stepped.sampled, stepped.finished.tolist(), strict=True)
        for item, tokens, sampled, is_finished in rows:
            self._queues.generate.advance(item, tokens, finished=is_finished)
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
        with self._queues.wake:
            if self._queues.is_over:
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
            self._queues.settle(batch.lane, (item.work for item in batch.items))
            self._queues.wake.notify_all()

    def _put_back(self, batches: Iterable[Batch]) -> None:
        with self._queues.wake:
            if self._queues.is_over:
                return
            for batch in reversed(list(batches)):
                batch.lane.put_back(batch)
            self._queues.wake.notify_all()
