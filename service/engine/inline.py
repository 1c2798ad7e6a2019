"""The engine in one process: a thread of it owns the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Unpack

from service.engine.batching import BatchingEngine, EngineOptions
from service.engine.jobs import Job, JobRunner, LinkDown, Outcome
from service.engine.protocol import Device


class _LocalLink:
    """See ``service.engine.jobs.Link``. ``receive`` runs the job in the calling thread."""

    depth = 1

    def __init__(self, device_factory: Callable[[], Device]) -> None:
        self.name = "inline"
        self._device_factory = device_factory
        self._runner: JobRunner | None = None
        self._jobs: deque[Job] = deque()

    def open(self) -> Any:
        """See ``Link``. Raises what the factory raises."""
        device = self._device_factory()
        self._runner = JobRunner(device)
        info = getattr(device, "info", None)
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
        if self._runner is None:
            raise LinkDown("the device is not open")
        job = self._jobs.popleft()
        return self._runner.run(job, None if job.block is None else job.block.rows)

    def was_started(self) -> bool:
        """See ``Link``."""
        return True

    def interrupt(self) -> None:
        """See ``Link``. A device cannot be interrupted: its thread ends after the batch in progress, or with the process."""

    def close(self) -> None:
        """See ``Link``."""
        self._runner = None


class InlineEngine(BatchingEngine):
    """See ``service.engine.Engine``. ``device_factory`` is called in the thread that will own the device."""

    def __init__(self, device_factory: Callable[[], Device], **options: Unpack[EngineOptions]) -> None:
        super().__init__([_LocalLink(device_factory)], shared=False, **options)
