"""What a worker is asked to run, and what it answers: the seam between the queues and the devices."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from service.engine.blocks import Block
from service.engine.protocol import Device, Ids, LaneName, Pixels, RowState, Stepped

__all__ = ["Job", "Link", "LinkDown", "Outcome", "argument_of", "execute"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One batch, or one sampling step. ``block`` holds the images of encode, in the rows from ``first`` on; ``tokens``
    [n, K] are those of decode; ``rows`` those of a step. After ``deadline`` nobody waits for any of it.
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
    """Seconds at the device, and a result for every row, or the error that the batch raised. Neither: it came too late
    to be begun.
    """

    seconds: float
    result: Any = None
    error: Exception | None = None


class LinkDown(Exception):
    """The worker behind a link has gone, or never came; the message says what is known. ``is_failure``: it said itself
    that it cannot work.
    """

    def __init__(self, message: str, *, is_failure: bool = False) -> None:
        super().__init__(message)
        self.is_failure = is_failure


class Link(Protocol):
    """The way to one worker, used by one thread. ``depth`` is how many jobs it may hold: one running, others next."""

    name: str
    depth: int

    def open(self) -> Any:
        """Waits for the worker; returns its model information. Raises ``LinkDown`` if it cannot work, or ``give_up``."""

    def is_alive(self) -> bool:
        """Whether an idle worker is still there."""

    def send(self, job: Job) -> None:
        """Hands over a job. Raises ``LinkDown``."""

    def receive(self) -> Outcome:
        """Waits for the outcome of the oldest job. Raises ``LinkDown``. Arrays are valid until the next ``receive``
        but one.
        """

    def had_begun(self) -> bool:
        """Whether the worker, now gone, had begun with the oldest job."""

    def give_up(self) -> None:
        """Makes ``open`` and ``receive`` raise, from another thread."""

    def close(self) -> None:
        """Gives back what it holds."""


def execute(device: Device, lane: LaneName, argument: Any, count: int) -> Outcome:
    """Runs a job. What the device raises is part of the outcome, unless it is no ``Exception``."""
    started = time.perf_counter()
    result: Any = None
    error: Exception | None = None
    try:
        if lane == "encode":
            result = device.encode(argument)
        elif lane == "decode":
            result = device.decode(argument)
        else:
            result = device.step(argument)
    except Exception as raised:
        error = raised
    else:
        answered = len(result.tokens if isinstance(result, Stepped) else result)
        if answered != count:
            result, error = None, ValueError(f"the device answered {answered} rows of {count}")
    return Outcome(seconds=time.perf_counter() - started, result=result, error=error)


def argument_of(job: Job) -> Pixels | Ids | Sequence[RowState]:
    """What the device is called with, for a job in this process."""
    if job.block is not None:
        return job.block.rows[job.first : job.first + job.count]
    return job.rows if job.tokens is None else job.tokens
