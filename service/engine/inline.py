"""The link to a device in this process, whose thread owns it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from service.engine.jobs import Job, JobRunner, LinkDown, Outcome
from service.engine.protocol import Device


class InlineLink:
    """See ``service.engine.jobs.Link``. ``device_factory`` is called in the thread that will own the device, and ``receive``
    runs the job in it.
    """

    depth = 1
    shares_memory = False

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
