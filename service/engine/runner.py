"""The thread of one link: takes batches, sends them to the worker, and delivers the results.

The thread pulls: as soon as its worker is idle it takes what was queued meanwhile, so there is no batching delay to tune.
A full batch is prefetched while the one before still runs; a partial one grows until the worker is idle. Lanes are served
round robin, one batch of encode or decode or one sampling step of generate each, so no lane waits longer for another.

When a worker dies or its device fails, the images of the batch are retried unbatched, on another worker if one is
connected. An image that fails again, or whose second worker dies as well, fails its request.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy.typing as npt

from service.engine.errors import DeadlineExceeded, DeviceFailed, WorkerCrashed
from service.engine.jobs import Link, LinkDown, Outcome
from service.engine.lanes import Batch, Lane
from service.engine.protocol import BatchReport, ConfigurationError, DeviceLost, Stepped
from service.engine.queues import Queues
from service.engine.requests import EngineRequest, ImageTask

log = logging.getLogger(__name__)

# How often the thread of an idle link checks that its worker is still connected.
_IDLE_CHECK_SECONDS = 0.25


@dataclass(kw_only=True)
class LinkRunner:
    """Keeps the worker behind ``link`` busy. ``on_up`` receives its model information, ``on_down`` why it is gone,
    ``on_death`` in which phase an error ended the thread, and that error; all are called in the thread.
    """

    queues: Queues
    link: Link
    on_up: Callable[[Link, Any], None]
    on_down: Callable[[Link, LinkDown], None]
    on_death: Callable[[str, BaseException], None]

    def run(self) -> None:
        """Serves the link until the engine is drained or over."""
        is_open = False
        try:
            while not self.queues.is_over:
                try:
                    info = self.link.open()
                    is_open = True
                    self.on_up(self.link, info)
                    self._run_batches()
                except LinkDown as down:
                    self.on_down(self.link, down)
                else:
                    return
        except BaseException as error:
            phase = "the device thread has died" if is_open else "the device cannot be opened"
            explains_itself = isinstance(error, ConfigurationError | DeviceLost)
            if not explains_itself:
                log.exception(phase)
            self.on_death(f"{phase}: {error}" if explains_itself or not is_open else f"{phase}: {error!r}", error)
        finally:
            self.link.close()

    def _run_batches(self) -> None:
        """Keeps the worker busy until the engine is drained."""
        sent: deque[Batch] = deque()
        try:
            while True:
                while len(sent) < self.link.depth and (batch := self._next_batch(is_idle=not sent)) is not None:
                    if self._send(batch):
                        sent.append(batch)
                if not sent:
                    return
                outcome = self.link.receive()
                done = sent.popleft()
                if sent:
                    self._start(sent[0])
                self._complete(done, outcome)
        except LinkDown:
            if sent and self.link.was_started():
                self._retry(sent.popleft())
            self._put_back(sent)
            raise

    def _send(self, batch: Batch) -> bool:
        """Sends a batch; False if it cannot be put together or into a message, which fails it."""
        started = time.perf_counter()
        try:
            self.link.send(batch.job())
        except LinkDown:
            self._put_back([batch])
            raise
        except Exception as error:
            self._start(batch)
            self._complete(batch, Outcome(seconds=0.0, error=error))
            return False
        batch.hand_over_seconds = time.perf_counter() - started
        return True

    def _next_batch(self, *, is_idle: bool) -> Batch | None:
        """Takes the next batch of the round robin. For an idle worker it waits for one, and returns None when the engine
        is drained; for a busy worker it returns a full batch or None.
        """
        with self.queues.wake:
            while not self.queues.is_over:
                if is_idle and not self.link.is_alive():
                    raise LinkDown("the worker has gone")
                now = self.queues.clock()
                due = {
                    lane: lane.seconds_until_due(now, only_full=not is_idle, worker=self._worker)
                    for lane in self.queues.lanes.values()
                }
                lane = next((lane for lane, seconds in due.items() if seconds == 0.0), None)
                if lane is not None:
                    if (batch := self._take(lane, is_idle=is_idle)) is not None:
                        return batch
                elif not is_idle or (self.queues.is_draining and not self.queues.has_work):
                    return None
                else:
                    waits = [seconds for seconds in due.values() if seconds is not None]
                    self.queues.wake.wait(min([_IDLE_CHECK_SECONDS, *waits]))
            return None

    @property
    def _worker(self) -> str | None:
        """The worker's name, or None while there is no other."""
        return self.link.name if len(self.queues.up) > 1 else None

    def _take(self, lane: Lane, *, is_idle: bool) -> Batch | None:
        queues = self.queues
        now = queues.clock()
        expired: list[EngineRequest] = []
        queues.lanes[lane.name] = queues.lanes.pop(lane.name)  # last in the round robin
        others = (other for other in queues.lanes.values() if other is not lane)
        others_wait = any(other.seconds_until_due(now, only_full=False) == 0.0 for other in others)
        batch = lane.take(now, expired, others_wait=others_wait, worker=self._worker)
        if batch.block is not None and not batch.tasks:
            while batch.block.writing and not queues.is_over:
                queues.wake.wait(_IDLE_CHECK_SECONDS)
            if not queues.is_over:
                queues.encode.fill(batch, queues.clock(), expired)
        if is_idle:
            lane.start(batch, queues.clock())
        else:
            lane.prefetch(batch)
        queues.resolve(expired)
        queues.wake.notify_all()
        return batch if batch.tasks else None

    def _start(self, batch: Batch) -> None:
        """Records that the worker has finished everything before a batch."""
        with self.queues.wake:
            if not self.queues.is_over:
                batch.lane.start(batch, self.queues.clock())

    def _complete(self, batch: Batch, outcome: Outcome) -> None:
        lane, tasks, result = batch.lane, batch.tasks, outcome.result
        started = time.perf_counter()
        if result is not None and not isinstance(result, Stepped):
            self._copy_results(tasks, result)
        requests = {task.request for task in tasks}
        self.queues.observer.batch(
            BatchReport(
                lane=lane.name,
                device=self.link.name,
                images=len(tasks),
                hand_over_seconds=batch.hand_over_seconds,
                device_seconds=outcome.seconds,
                results_seconds=time.perf_counter() - started,
                callers=[request.caller for request in requests if request.caller is not None],
            )
        )
        with self.queues.wake:
            if self.queues.is_over:
                return
            for request in requests:
                request.device_seconds += outcome.seconds
                request.batch_images = max(request.batch_images, len(tasks))
            ended, reports = self._finish(batch, outcome)
            lane.record_cost(ended, outcome.seconds, self.queues.clock())
            self.queues.resolve(requests, reports)
            self.queues.wake.notify_all()

    def _copy_results(self, tasks: Sequence[ImageTask], rows: npt.NDArray[Any]) -> None:
        """Copies results to their requests; the copy itself is made without the lock."""
        with self.queues.wake:
            wanted = [(task, row) for task, row in zip(tasks, rows, strict=True) if not task.request.ended]
            arrays = [task.request.allocate_results(row) for task, row in wanted]
        for (task, row), array in zip(wanted, arrays, strict=True):
            array[task.index] = row
        with self.queues.wake:
            for task, _ in wanted:
                task.request.finished_images += 1

    def _finish(self, batch: Batch, outcome: Outcome) -> tuple[int, list[Callable[[], None]]]:
        """Updates the lane after a batch. Returns how many images ended, and the step reports for their callers."""
        if outcome.error is not None:
            return self._fail(batch, outcome.error), []
        if isinstance(outcome.result, Stepped):
            return self._advance(batch.tasks, outcome.result)
        if outcome.result is None:  # the deadline of all had passed before the worker could start
            for task in batch.tasks:
                task.request.fail(DeadlineExceeded(lane=batch.lane.name, stage="queue"))
                batch.lane.count_abandoned(task.request)
        for task in batch.tasks:
            batch.lane.finish(task)
        return len(batch.tasks), []

    def _advance(self, tasks: Sequence[ImageTask], stepped: Stepped) -> tuple[int, list[Callable[[], None]]]:
        reports: list[Callable[[], None]] = []
        rows = zip(tasks, stepped.tokens, stepped.sampled, stepped.finished.tolist(), strict=True)
        for task, tokens, sampled, is_finished in rows:
            self.queues.generate.advance(task, tokens, finished=is_finished)
            request = task.request
            if request.ended:
                continue
            if request.on_step is not None:
                reports.append(partial(request.report_step, task.index, task.step, tokens, sampled))
            if is_finished:
                request.allocate_results(tokens)[task.index] = tokens
                request.finished_images += 1
        return int(stepped.finished.sum()), reports

    def _fail(self, batch: Batch, error: Exception) -> int:
        """Handles an error of the device: images are retried unbatched, on another worker if there is one; one image that
        fails again, or has no other worker, fails its request.
        """
        lane, tasks = batch.lane, batch.tasks
        if len(tasks) > 1 or (tasks[0].failed_on is None and self._worker is not None):
            log.warning("a %s batch of %d images failed (%r); retrying them one by one", lane.name, len(tasks), error)
            for task in tasks:
                task.failed_on = self.link.name
                lane.retry_unbatched(task)
            return 0
        log.error("the device failed on one image of lane %s", lane.name, exc_info=error)
        failure = DeviceFailed(f"the device failed: {error}")
        failure.__cause__ = error
        tasks[0].request.fail(failure)
        lane.finish(tasks[0])
        return 1

    def _retry(self, batch: Batch) -> None:
        """Retries the images of a batch that a worker died running, unbatched; the second crash fails the request."""
        with self.queues.wake:
            if self.queues.is_over:
                return
            for task in batch.tasks:
                task.crashes += 1
                task.failed_on = self.link.name
                if task.crashes > 1 and not task.request.ended:
                    log.error("two workers died running the same image of lane %s; its request fails", batch.lane.name)
                    task.request.fail(WorkerCrashed("two workers died running the same image of this request"))
                if task.request.ended:
                    batch.lane.finish(task)
                else:
                    batch.lane.retry_unbatched(task)
            self.queues.resolve(task.request for task in batch.tasks)
            self.queues.wake.notify_all()

    def _put_back(self, batches: Iterable[Batch]) -> None:
        with self.queues.wake:
            if self.queues.is_over:
                return
            for batch in reversed(list(batches)):
                batch.lane.put_back(batch)
            self.queues.wake.notify_all()
