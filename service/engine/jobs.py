"""Jobs sent to a worker and their outcomes: the interface between the queues and the devices."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from service.engine.blocks import Block, Rows
from service.engine.protocol import Device, DeviceLost, Ids, LaneName, Latents, RowState, Stepped

_FAILURES_IN_A_ROW = 5
# What PyTorch's errors say after the driver's or a library's: kernels that were still running have failed.
_CONTEXT_ENDS = (
    *("CUDA error", "CUDA driver error", "HIP error", "device-side assert"),
    *("_STATUS_EXECUTION_FAILED", "_STATUS_INTERNAL_ERROR"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One batch, or one sampling step. Encode reads rows ``first`` to ``first + count`` of ``block`` and gives ids, or
    with ``latents`` their vectors; decode reads ``tokens`` int64 [n, K] or float32 [n, K, C]; generate reads ``rows``.
    After ``deadline`` no request waits for any of it.
    """

    lane: LaneName
    count: int
    deadline: float
    block: Block | None = None
    first: int = 0
    latents: bool = False
    tokens: Ids | Latents | None = None
    rows: Sequence[RowState] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Seconds on the device, and either a result for every row or the error that the device raised. With neither, the
    deadline had passed before the job was started.
    """

    seconds: float
    result: Any = None
    error: Exception | None = None


class LinkDown(Exception):
    """The worker behind a link has exited or did not start. ``is_failure``: it reported that its device cannot be opened."""

    def __init__(self, message: str, *, is_failure: bool = False) -> None:
        super().__init__(message)
        self.is_failure = is_failure


class Link(Protocol):
    """The connection to one worker, used by one thread. ``depth``: how many jobs may be sent before an outcome is read.
    ``shares_memory``: whether images are written into memory that the worker, another process, maps.
    """

    name: str
    depth: int
    shares_memory: bool

    def open(self) -> Any:
        """Waits for the worker and returns its model information. Raises ``LinkDown`` if it cannot work, and after
        ``interrupt``.
        """

    def is_alive(self) -> bool:
        """Whether an idle worker is still connected."""

    def send(self, job: Job) -> None:
        """Sends a job. Raises ``LinkDown``."""

    def receive(self) -> Outcome:
        """Waits for the outcome of the oldest job. Raises ``LinkDown``. Arrays stay valid until the next but one
        ``receive``.
        """

    def was_started(self) -> bool:
        """Whether the worker, which has exited, had started the oldest job."""

    def interrupt(self) -> None:
        """Makes ``open`` and ``receive`` raise. Called from another thread."""

    def close(self) -> None:
        """Releases the connection and shared memory."""


class JobRunner:
    """Runs jobs on a device, in the thread that owns it, and tells errors of a batch from the loss of the device.

    An error of a batch is its outcome. The device is lost if an error ended its context (every later CUDA call would fail),
    or if it failed on several single images in a row: images are validated before they get here.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._failures = 0

    def run(self, job: Job, images: Rows | None) -> Outcome:
        """Runs a job; ``images`` are the rows of its block. Raises ``DeviceLost``."""
        started = time.perf_counter()
        result: Any = None
        error: Exception | None = None
        try:
            result = self._call(job, images)
        except DeviceLost:
            raise
        except Exception as raised:
            if _ends_context(raised):
                raise DeviceLost(f"the device is lost: {raised}") from raised
            self._failures += job.count == 1
            if self._failures == _FAILURES_IN_A_ROW:
                raise DeviceLost(
                    f"{_FAILURES_IN_A_ROW} single images in a row failed, the last with {raised!r}"
                ) from raised
            error = raised
        else:
            self._failures = 0
        return Outcome(seconds=time.perf_counter() - started, result=result, error=error)

    def _call(self, job: Job, images: Rows | None) -> Any:
        result: Any
        if images is not None:
            encode = self._device.latents if job.latents else self._device.encode
            result = encode(images[job.first : job.first + job.count])
        elif job.tokens is not None:
            result = self._device.decode(job.tokens)
        else:
            result = self._device.step(job.rows)
        rows = len(result.tokens if isinstance(result, Stepped) else result)
        if rows != job.count:
            raise ValueError(f"the device returned {rows} rows for a batch of {job.count}")
        return result


def _ends_context(error: Exception) -> bool:
    """Whether a GPU's driver reported an error other than out of memory. PyTorch raises ``RuntimeError`` or a subclass."""
    text = str(error)
    return (
        isinstance(error, RuntimeError) and "out of memory" not in text and any(part in text for part in _CONTEXT_ENDS)
    )
