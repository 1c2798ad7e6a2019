"""The decode and generate lanes, whose images are a few numbers each and wait in lists."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from service.engine.lanes import Batch, Lane, LaneLimits
from service.engine.protocol import EngineObserver, Ids, LaneName
from service.engine.requests import EngineRequest, ImageTask


class _ListLane(Lane):
    """Base of both lanes."""

    def __init__(self, name: LaneName, limits: LaneLimits, observer: EngineObserver) -> None:
        super().__init__(name, limits, observer)
        self._tasks: deque[ImageTask] = deque()

    def _enqueue(self, tasks: Sequence[ImageTask]) -> None:
        self._tasks.extend(tasks)

    def _take_from(
        self, queue: deque[ImageTask], limit: int, now: float, expired: list[EngineRequest]
    ) -> list[ImageTask]:
        """Takes up to ``limit`` images of open requests."""
        taken: list[ImageTask] = []
        while queue and len(taken) < limit:
            task = queue.popleft()
            wanted = self._is_wanted(task, now, expired)
            self._set_state(task, "active" if wanted else "done")
            if wanted:
                taken.append(task)
        return taken

    def _remove(self, task: ImageTask) -> bool:
        self._tasks.remove(task)
        return True

    def clear(self) -> None:
        """See ``Lane``."""
        super().clear()
        self._tasks.clear()


class DecodeLane(_ListLane):
    """Batches of ids."""

    def __init__(self, limits: LaneLimits, observer: EngineObserver) -> None:
        super().__init__("decode", limits, observer)

    def _take(self, now: float, expired: list[EngineRequest], limit: int) -> Batch:
        return Batch(self, self._take_from(self._tasks, limit, now, expired))

    def _has_full_batch(self) -> bool:
        return len(self._tasks) >= self.batch_size

    def _oldest_arrival(self) -> float | None:
        return self._tasks[0].request.admitted_at if self._tasks else None

    def _put_back(self, batch: Batch) -> None:
        for task in reversed(batch.tasks):
            self._set_state(task, "queued")
            self._tasks.appendleft(task)


class GenerateLane(_ListLane):
    """Continuous batching by sampling step: rows at any step run together; finished rows leave and new rows join between
    steps.

    A row is active from its first step to its last, and is in ``_between_steps`` while it is not in a batch. New rows join
    only when that list is empty, so there are never more active rows than the workers have room for.
    """

    def __init__(self, limits: LaneLimits, observer: EngineObserver) -> None:
        super().__init__("generate", limits, observer)
        self._between_steps: deque[ImageTask] = deque()

    def _take(self, now: float, expired: list[EngineRequest], limit: int) -> Batch:  # noqa: ARG002  a step is short
        rows = self._take_from(self._between_steps, self.batch_size, now, expired)
        rows += self._take_from(self._tasks, self.batch_size - len(rows), now, expired)
        return Batch(self, rows)

    def advance(self, task: ImageTask, tokens: Ids, *, finished: bool) -> None:
        """Records a sampling step of a row."""
        task.step += 1
        task.tokens = tokens
        if finished:
            self.finish(task)
        else:
            self._between_steps.append(task)

    def _has_full_batch(self) -> bool:
        return False  # the rows of the next step are those that this step returns

    def _oldest_arrival(self) -> float | None:
        return -math.inf if self._between_steps or self._tasks else None  # ``max_wait`` does not apply

    def _put_back(self, batch: Batch) -> None:
        self._between_steps.extendleft(reversed(batch.tasks))

    def clear(self) -> None:
        """See ``Lane``."""
        super().clear()
        self._between_steps.clear()
