"""The engine in one process: the device belongs to a thread of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from service.engine.batching import BatchingEngine
from service.engine.jobs import Job, LinkDown, Outcome, argument_of, execute
from service.engine.lanes import LaneLimits
from service.engine.protocol import Device, EngineObserver, LaneName

__all__ = ["InlineEngine"]


class _LocalLink:
    """See ``service.engine.jobs.Link``. The thread that asks is the one that runs."""

    depth = 1

    def __init__(self, device_factory: Callable[[], Device]) -> None:
        self.name = "inline"
        self._device_factory = device_factory
        self._device: Device | None = None
        self._jobs: deque[Job] = deque()

    def open(self) -> Any:
        """See ``Link``. Raises what the factory raises."""
        self._device = self._device_factory()
        info = getattr(self._device, "info", None)
        self.name = getattr(info, "device", self.name)
        return info

    def is_alive(self) -> bool:
        """See ``Link``."""
        return True

    def send(self, job: Job) -> None:
        """See ``Link``."""
        self._jobs.append(job)

    def receive(self) -> Outcome:
        """See ``Link``."""
        if self._device is None:
            raise LinkDown("the device is not open")
        job = self._jobs.popleft()
        return execute(self._device, job.lane, argument_of(job), job.count)

    def had_begun(self) -> bool:
        """See ``Link``."""
        return True

    def give_up(self) -> None:
        """See ``Link``. A device cannot be interrupted; its thread ends with the process, or when it comes back."""

    def close(self) -> None:
        """See ``Link``."""
        self._device = None


class InlineEngine(BatchingEngine):
    """See ``service.engine.Engine``. ``device_factory`` is called in the thread that will own the device."""

    def __init__(
        self,
        device_factory: Callable[[], Device],
        *,
        limits: LaneLimits | Mapping[LaneName, LaneLimits] | None = None,
        observer: EngineObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_model_info: Callable[[Any], None] | None = None,
    ) -> None:
        super().__init__(
            [_LocalLink(device_factory)],
            shared=False,
            limits=limits,
            observer=observer,
            clock=clock,
            on_model_info=on_model_info,
        )
