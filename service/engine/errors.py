"""Why the engine did not answer.

::

    EngineError
    ├── QueueFull          refused at admission; ``retry_after`` says when there may be room
    ├── DeadlineExceeded   the request's time was up before its result was there
    ├── EngineStopped      not started, without a worker, draining, or stopped
    ├── DeviceFailed       the device raised for an image of this request
    └── WorkerCrashed      an image of this request ended its worker twice
"""

from __future__ import annotations

__all__ = ["DeadlineExceeded", "DeviceFailed", "EngineError", "EngineStopped", "QueueFull", "WorkerCrashed"]


class EngineError(Exception):
    """Any of the above."""


class QueueFull(EngineError):
    """A lane takes no more than ``limit`` images, or bytes as the message says.

    ``retry_after`` is in seconds; None says that the request would never fit.
    """

    def __init__(self, message: str, *, lane: str, limit: int, retry_after: float | None) -> None:
        super().__init__(message)
        self.lane = lane
        self.limit = limit
        self.retry_after = retry_after


class DeadlineExceeded(EngineError):
    """Too late; ``stage`` is where the request was: ``admission``, ``queue`` or ``device``."""

    def __init__(self, *, lane: str, stage: str) -> None:
        super().__init__(f"the deadline passed at the stage {stage} of lane {lane}")
        self.lane = lane
        self.stage = stage


class EngineStopped(EngineError):
    """No device works for this engine, or no more."""


class DeviceFailed(EngineError):
    """The device raised; its exception, or its text from another process, is the cause."""


class WorkerCrashed(EngineError):
    """A worker died over the image, and so did the one that ran it again, alone. It is not tried a third time."""
