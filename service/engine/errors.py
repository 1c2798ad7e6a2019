"""Errors of the engine.

::

    EngineError
    ├── QueueFull          rejected at admission; ``retry_after`` estimates when there is room
    ├── DeadlineExceeded   the deadline passed before the result
    ├── EngineStopped      not started, no worker, draining, or stopped
    ├── DeviceFailed       the device raised an error for an image of this request
    └── WorkerCrashed      two workers died running the same image of this request
"""

from __future__ import annotations


class EngineError(Exception):
    """Base class."""


class QueueFull(EngineError):
    """A lane admits at most ``limit`` images, or bytes as the message says.

    ``retry_after`` is in seconds; None: the request is larger than the queue.
    """

    def __init__(self, message: str, *, lane: str, limit: int, retry_after: float | None) -> None:
        super().__init__(message)
        self.lane = lane
        self.limit = limit
        self.retry_after = retry_after


class DeadlineExceeded(EngineError):
    """The deadline passed; ``stage`` is where the request was then: ``admission``, ``queue``, ``device``, or outside of the
    engine.
    """

    def __init__(self, *, lane: str, stage: str) -> None:
        super().__init__(f"the deadline passed at the stage {stage} of lane {lane}")
        self.lane = lane
        self.stage = stage


class EngineStopped(EngineError):
    """The engine admits no requests, or has ended."""


class DeviceFailed(EngineError):
    """The device raised an error, which is the cause (from another process: its text)."""


class WorkerCrashed(EngineError):
    """A worker died running an image, and so did the one that retried it unbatched. There is no third attempt."""
