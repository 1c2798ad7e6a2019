"""The encode lane: images are written as rows of blocks, in place, while the device runs another block."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from service.engine.blocks import Block, BlockPool
from service.engine.errors import QueueFull
from service.engine.lanes import Batch, Lane, LaneLimits
from service.engine.protocol import EngineObserver
from service.engine.requests import EngineRequest, ImageTask

_MEMORY_SECONDS = 1.0


class EncodeLane(Lane):
    """Images are queued when their request is admitted, and can be taken once a row of a block holds their pixels."""

    def __init__(self, limits: LaneLimits, observer: EngineObserver, *, shared: bool) -> None:
        super().__init__("encode", limits, observer)
        self.pool = BlockPool(shared=shared)
        self._blocks: deque[tuple[Block, float]] = deque()  # with the arrival time of the first image
        self._undecoded = 0

    def _enqueue(self, tasks: Sequence[ImageTask]) -> None:
        """Rows are claimed when the pixels arrive."""
        self._undecoded += len(tasks)

    def _expects_more(self, oldest: float) -> bool:
        """Images being decoded, and after a single one that arrived during the previous batch, the next ones of the clients
        whose results were in it. On a CPU, one image takes all cores and stalls for the decoding of the next: two clients
        whose images ran alternately would get less than one, and stay out of step if each image started at once.
        """
        return self._undecoded > 0 or (self.queued_images == 1 and oldest < self.finished_at)

    def claim(self, task: ImageTask, row_shape: tuple[int, ...], now: float) -> Block | None:
        """Claims a row for an image; None if its request has ended. Raises ``QueueFull`` if no memory is left for it."""
        if task.request.ended:
            return None
        self._undecoded -= 1
        # A new block only when no block has a free row: so blocks are bounded as images are. A batch gives ids or latents.
        wanted: bool = task.payload
        block = next(
            (block for block, _ in reversed(self._blocks) if block.has_free_row and block.latents == wanted), None
        )
        if block is None:
            try:
                block = self.pool.acquire(self.batch_size, row_shape)
            except (MemoryError, OSError) as error:  # the latter also without a free file descriptor
                message = f"No memory is left for more images ({error})"
                raise QueueFull(message, lane=self.name, limit=self.pool.size, retry_after=_MEMORY_SECONDS) from error
            block.latents = wanted
            self._blocks.append((block, now))
        task.block, task.row = block, block.claim(task)
        task.is_being_written = True
        return block

    def written(self, task: ImageTask) -> None:
        """Records that a claimed row holds its pixels."""
        _block_of(task).written()
        task.is_being_written = False
        if task.state != "queued":
            self._remove(task)

    def _take(self, now: float, expired: list[EngineRequest], limit: int) -> Batch:  # noqa: ARG002  blocks are filled before
        if not self._blocks:
            return Batch(self, [])
        block, _ = self._blocks.popleft()
        batch = Batch(self, [], block)
        if not block.writing:
            self.fill(batch, now, expired)
        return batch

    def fill(self, batch: Batch, now: float, expired: list[EngineRequest]) -> None:
        """Adds the images of a batch's block that are still needed, once no row is being written."""
        block = _block_of(batch)
        for row, task in enumerate(block.owners):
            if task is not None and not self._is_wanted(task, now, expired):
                self._set_state(task, "done")
                block.release(row)
        batch.tasks = block.compact()
        for row, task in enumerate(batch.tasks):
            task.row = row
            self._set_state(task, "active")
        if not batch.tasks:
            self.pool.release(block)
            batch.block = None

    def _has_full_batch(self) -> bool:
        return bool(self._blocks) and (len(self._blocks) > 1 or not self._blocks[0][0].has_free_row)

    def _oldest_arrival(self) -> float | None:
        return self._blocks[0][1] if self._blocks else None

    def _put_back(self, batch: Batch) -> None:
        for task in batch.tasks:
            self._set_state(task, "queued")
        self._blocks.appendleft((_block_of(batch), batch.tasks[0].request.admitted_at))

    def finish(self, task: ImageTask) -> None:
        """See ``Lane``. Releases the block after its last image."""
        super().finish(task)
        block = _block_of(task)
        block.unanswered -= 1
        if not block.unanswered:
            self.pool.release(block)

    def _remove(self, task: ImageTask) -> bool:
        block = task.block
        if block is None:
            self._undecoded -= 1
            return False
        if task.is_being_written:
            return True  # ``written`` removes it
        block.release(task.row)
        if block.is_unused:
            for position, (waiting, _) in enumerate(self._blocks):
                if waiting is block:
                    del self._blocks[position]
                    self.pool.release(block)
                    break
        return True

    def clear(self) -> None:
        """See ``Lane``. Threads that still read or write a block keep its memory."""
        super().clear()
        self._blocks.clear()
        self._undecoded = 0


def _block_of(holder: ImageTask | Batch) -> Block:
    if holder.block is None:
        raise LookupError("an image of the encode lane has no row yet")
    return holder.block
