"""Requests that wait for room in a full lane. Refused at once, clients that ask again at once would take the processor from
the images being computed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from service.engine.lanes import Lane

MAX_WAITING = 1024
_CHECK_SECONDS = 0.02


class AdmissionQueue:
    """At most ``MAX_WAITING`` requests, first come, first served, each for at most ``lane.limits.admission_wait`` seconds.
    Used from one event loop. ``free_images`` is called every 20 ms while a request waits.
    """

    def __init__(self, lane: Lane, free_images: Callable[[], int]) -> None:
        self._limits = lane.limits
        self._free_images = free_images
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def wait(self, images: int, seconds_left: float) -> None:
        """Returns when there is room, or it makes no sense to wait any longer: admission then raises ``QueueFull``."""
        has_room = not self._waiting and images <= self._free_images()
        seconds = min(self._limits.admission_wait, seconds_left / 2)  # half: in time for an answer, if it is admitted
        if has_room or seconds <= 0 or images > self._limits.max_images or len(self._waiting) >= MAX_WAITING:
            return
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_later(_CHECK_SECONDS, self._admit)
        entry = images, loop.create_future()
        self._waiting.append(entry)
        try:
            await asyncio.wait({entry[1]}, timeout=seconds)
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)

    def _admit(self) -> None:
        free = self._free_images()
        while self._waiting and self._waiting[0][0] <= free:
            images, future = self._waiting.popleft()
            free -= images
            future.set_result(None)
        if self._waiting:
            asyncio.get_running_loop().call_later(_CHECK_SECONDS, self._admit)
