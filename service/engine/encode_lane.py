"""The lane of encode: images gather as rows of blocks, written in place while the device is busy with another block."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from service.engine.blocks import Block, BlockPool
from service.engine.lanes import Batch, Lane, LaneLimits
from service.engine.protocol import EngineObserver
from service.engine.work import Item, Work

__all__ = ["EncodeLane"]


class EncodeLane(Lane):
    """Images wait as rows of blocks. A request's images are queued when it is admitted, and can be taken when written."""

    def __init__(self, limits: LaneLimits, observer: EngineObserver, *, shared: bool) -> None:
        super().__init__("encode", limits, observer)
        self.pool = BlockPool(shared=shared)
        self._blocks: deque[tuple[Block, float]] = deque()

    def _enqueue(self, items: Sequence[Item]) -> None:
        """Their rows are claimed when their pixels are there."""

    def claim(self, item: Item, row_shape: tuple[int, ...], now: float) -> Block | None:
        """A row for an image, in the block that is being filled; None if it is not wanted any more."""
        if item.work.ended:
            return None
        # A new block only when no row is free in any other: so blocks are bounded as images are.
        last = self._blocks[-1][0] if self._blocks else None
        if last is not None and last.has_room_at_end:
            block = last
        else:
            holed = next((block for block, _ in self._blocks if block.has_holes), None)
            if holed is None:
                holed = self.pool.take(self.batch_size, row_shape)
                self._blocks.append((holed, now))
            block = holed
        item.block, item.row = block, block.claim(item)
        item.is_being_written = True
        return block

    def written(self, item: Item) -> None:
        """A claimed row holds its pixels."""
        _block_of(item).written()
        item.is_being_written = False
        if not item.queued:
            self._forget(item)

    def _take(self, now: float, expired: list[Work], most: int) -> Batch:  # noqa: ARG002  blocks are filled already
        if not self._blocks:
            return Batch(self, [])
        block, _ = self._blocks.popleft()
        batch = Batch(self, [], block)
        if not block.writing:
            self.fill(batch, now, expired)
        return batch

    def fill(self, batch: Batch, now: float, expired: list[Work]) -> None:
        """Gives a batch the rows of its block that are still wanted, once none is being written."""
        block = _block_of(batch)
        for row, item in enumerate(block.owners):
            if item is not None and not self._is_wanted(item, now, expired):
                self._leave_queue(item)
                block.give_up(row)
        batch.items = block.compact()
        for row, item in enumerate(batch.items):
            item.row = row
        self._activate(batch.items)
        if not batch.items:
            self.pool.give(block)
            batch.block = None

    def _has_full_batch(self) -> bool:
        return bool(self._blocks) and (len(self._blocks) > 1 or self._blocks[0][0].is_full)

    def _oldest(self) -> float | None:
        return self._blocks[0][1] if self._blocks else None

    def _put_back(self, batch: Batch) -> None:
        # The block is open again.
        for item in batch.items:
            self._queue_again(item)
        self._blocks.appendleft((_block_of(batch), batch.items[0].work.admitted))

    def finish(self, item: Item) -> None:
        """See ``Lane``. A block without any image left is free."""
        super().finish(item)
        block = _block_of(item)
        block.unanswered -= 1
        if not block.unanswered:
            self.pool.give(block)

    def _forget(self, item: Item) -> bool:
        block = item.block
        if block is None:
            return False
        if item.is_being_written:
            return True  # comes back here once it is written
        block.give_up(item.row)
        if not block.live and not block.writing:
            for position, (waiting, _) in enumerate(self._blocks):
                if waiting is block:
                    del self._blocks[position]
                    self.pool.give(block)
                    break
        return True

    def clear(self) -> None:
        """See ``Lane``. Blocks are left to whoever still reads or writes them."""
        super().clear()
        self._blocks.clear()


def _block_of(holder: Item | Batch) -> Block:
    if holder.block is None:
        raise LookupError("an image of the encode lane has no row yet")
    return holder.block
