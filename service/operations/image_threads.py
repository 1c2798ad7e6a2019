"""The threads that decode and encode images, and the memory that decoding may take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from service.imaging.decoding_memory import DecodingMemory

T = TypeVar("T")


class ImageThreads:
    """Runs image work in at most ``num_threads`` threads. ``memory`` is shared by all images being decoded."""

    def __init__(self, num_threads: int, *, max_bytes: int) -> None:
        self._num_threads = num_threads
        self.memory = DecodingMemory(max_bytes)

    @cached_property
    def _limiter(self) -> anyio.CapacityLimiter:
        return anyio.CapacityLimiter(self._num_threads)  # needs a running event loop

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """One call in a thread."""
        return await anyio.to_thread.run_sync(function, *args, limiter=self._limiter)

    async def map(self, function: Callable[..., T], arguments: list[tuple[Any, ...]]) -> list[T]:
        """Calls in parallel, results in order. Raises the first failure, and cancels the calls not yet started."""
        if len(arguments) == 1:
            return [await self.run(function, *arguments[0])]
        tasks = [asyncio.ensure_future(self.run(function, *args)) for args in arguments]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
