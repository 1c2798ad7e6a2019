"""The lanes of decode and generate, whose images are a few numbers each and wait in lists."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from service.engine.lanes import Batch, Lane, LaneLimits
from service.engine.protocol import EngineObserver, Ids, LaneName
from service.engine.work import Item, Work

__all__ = ["DecodeLane", "GenerateLane"]


class _ListLane(Lane):
    """What both have in common."""

    def __init__(self, name: LaneName, limits: LaneLimits, observer: EngineObserver) -> None:
        super().__init__(name, limits, observer)
        self._items: deque[Item] = deque()

    def _enqueue(self, items: Sequence[Item]) -> None:
        self._items.extend(items)

    def _take_new(self, room: int, now: float, expired: list[Work]) -> list[Item]:
        taken: list[Item] = []
        while self._items and len(taken) < room:
            item = self._items.popleft()
            if self._is_wanted(item, now, expired):
                taken.append(item)
            else:
                self._leave_queue(item)
        self._activate(taken)
        return taken

    def _forget(self, item: Item) -> bool:
        self._items.remove(item)
        return True

    def clear(self) -> None:
        """See ``Lane``."""
        super().clear()
        self._items.clear()


class DecodeLane(_ListLane):
    """Batches of ids."""

    def __init__(self, limits: LaneLimits, observer: EngineObserver) -> None:
        super().__init__("decode", limits, observer)

    def _take(self, now: float, expired: list[Work], most: int) -> Batch:
        return Batch(self, self._take_new(most, now, expired))

    def _has_full_batch(self) -> bool:
        return len(self._items) >= self.batch_size

    def _oldest(self) -> float | None:
        return self._items[0].work.admitted if self._items else None

    def _put_back(self, batch: Batch) -> None:
        for item in reversed(batch.items):
            self._queue_again(item)
            self._items.appendleft(item)


class GenerateLane(_ListLane):
    """Batched by sampling step: rows at any steps go together, finished ones leave and waiting ones join in between.

    A row is active from its first step to its last, and idle between steps. New rows join only when no idle one is
    left, so there are never more active ones than the workers have room for.
    """

    def __init__(self, limits: LaneLimits, observer: EngineObserver) -> None:
        super().__init__("generate", limits, observer)
        self._idle: deque[Item] = deque()

    def _take(self, now: float, expired: list[Work], most: int) -> Batch:  # noqa: ARG002  a row costs many steps
        rows: list[Item] = []
        while self._idle and len(rows) < self.batch_size:
            item = self._idle.popleft()
            if self._is_wanted(item, now, expired):
                rows.append(item)
            else:
                self.finish(item)
        rows += self._take_new(self.batch_size - len(rows), now, expired)
        return Batch(self, rows)

    def advance(self, item: Item, tokens: Ids, *, finished: bool) -> None:
        """A row has made a step."""
        item.step += 1
        item.tokens = tokens
        if finished:
            self.finish(item)
        else:
            self._idle.append(item)

    def _has_full_batch(self) -> bool:
        return False  # the rows of the next step are those that come back from this one

    def _oldest(self) -> float | None:
        # A step waits for no company: its rows have been waiting for each other since the step before.
        return -math.inf if self._idle or self._items else None

    def _put_back(self, batch: Batch) -> None:
        self._idle.extendleft(reversed(batch.items))

    def clear(self) -> None:
        """See ``Lane``."""
        super().clear()
        self._idle.clear()
