"""Jobs sent to a worker and their outcomes: the interface between the queues and the devices."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from service.engine.blocks import Block, Rows
from service.engine.protocol import Device, Ids, LaneName, RowState, Stepped


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One batch, or one sampling step. Encode reads rows ``first`` to ``first + count`` of ``block``, decode reads
    ``tokens`` int64 [n, K], generate reads ``rows``. After ``deadline`` no request waits for any of it.
    """

    lane: LaneName
    count: int
    deadline: float
    block: Block | None = None
    first: int = 0
    tokens: Ids | None = None
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
    """The connection to one worker, used by one thread. ``depth``: how many jobs may be sent before an outcome is read."""

    name: str
    depth: int

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


def execute(device: Device, job: Job, images: Rows | None) -> Outcome:
    """Runs a job. An ``Exception`` of the device becomes the outcome's error. ``images``: the rows of the job's block."""
    started = time.perf_counter()
    result: Any = None
    error: Exception | None = None
    try:
        if images is not None:
            result = device.encode(images[job.first : job.first + job.count])
        elif job.tokens is not None:
            result = device.decode(job.tokens)
        else:
            result = device.step(job.rows)
    except Exception as raised:
        error = raised
    else:
        rows = len(result.tokens if isinstance(result, Stepped) else result)
        if rows != job.count:
            result, error = None, ValueError(f"the device returned {rows} rows for a batch of {job.count}")
    return Outcome(seconds=time.perf_counter() - started, result=result, error=error)
