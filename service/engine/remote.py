"""The engine in front of worker processes: a link is a connection to one of them, found again when it is restarted."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from service.engine.batching import BatchingEngine
from service.engine.blocks import COUNTER_BYTES, Rows, map_counter, map_rows
from service.engine.jobs import Job, LinkDown, Outcome
from service.engine.lanes import LaneLimits
from service.engine.protocol import EngineObserver, LaneName
from service.engine.wire import Answer, Channel, Failure, Memory, Request, Tally

__all__ = ["RemoteDeviceError", "RemoteEngine", "RemoteLink"]

_RETRY_SECONDS = 0.05
# One batch runs and the next is there when it ends. More would only wait in the wrong place, where it cannot grow.
_DEPTH = 2


class RemoteDeviceError(Exception):
    """What a device raised in another process, as text."""


class RemoteLink:
    """See ``service.engine.jobs.Link``."""

    def __init__(self, name: str, address: str, depth: int) -> None:
        self.name = name
        self.depth = depth
        self._address = address
        self._channel: Channel | None = None
        self._blocks: set[int] = set()
        self._answers: dict[int, Rows] = {}
        self._has_given_up = threading.Event()
        self._poll = select.poll()
        self._tally = np.zeros(1, np.int64)
        self._received = 0

    def open(self) -> Any:
        """See ``Link``."""
        self._disconnect()
        while not self._has_given_up.is_set():
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(self._address)
            except OSError:
                connection.close()
                self._has_given_up.wait(_RETRY_SECONDS)
                continue
            self._channel = Channel(connection)
            if self._has_given_up.is_set():  # given up before there was a channel to shut down
                break
            try:
                message, _ = self._channel.receive()
            except (EOFError, OSError):
                self._disconnect()
                self._has_given_up.wait(_RETRY_SECONDS)
                continue
            if isinstance(message, Failure):
                self._has_given_up.wait(_RETRY_SECONDS)
                raise LinkDown(message.reason, is_failure=True)
            try:
                self._tally = _send_tally(self._channel)
            except OSError:
                continue
            self._received = 0
            self._poll = select.poll()
            self._poll.register(self._channel.fileno(), select.POLLIN)
            return message.info
        raise LinkDown("the service is shutting down")

    def is_alive(self) -> bool:
        """See ``Link``. An idle worker has nothing to say; if there is something to read, it is the end."""
        return not self._poll.poll(0)

    def send(self, job: Job) -> None:
        """See ``Link``."""
        memory, descriptors = None, []
        block = job.block
        if block is not None:
            is_new = block.number not in self._blocks
            memory = Memory(block.number, block.rows.shape, is_new)
            if is_new and block.descriptor is not None:
                descriptors = [block.descriptor]
        message = Request(job.lane, job.count, job.deadline, memory, job.first, job.tokens, job.rows)
        try:
            self._connected.send(message, descriptors)
        except OSError as error:
            raise LinkDown(f"the worker has gone: {error}") from None
        if memory is not None:
            self._blocks.add(memory.number)

    def receive(self) -> Outcome:
        """See ``Link``."""
        answer: Answer
        try:
            answer, descriptors = self._connected.receive()
        except (EOFError, OSError) as error:
            raise LinkDown(f"the worker has gone: {error}") from None
        self._received += 1
        result: Any = answer.result
        if answer.memory is not None:
            if answer.memory.is_new:
                self._answers[answer.memory.number] = map_rows(descriptors[0], answer.memory.shape)
                os.close(descriptors[0])
            result = self._answers[answer.memory.number][: answer.count]
        raised = RemoteDeviceError(answer.error) if answer.error is not None else None
        return Outcome(seconds=answer.seconds, result=result, error=raised)

    def had_begun(self) -> bool:
        """See ``Link``."""
        return int(self._tally[0]) > self._received

    def give_up(self) -> None:
        """See ``Link``."""
        self._has_given_up.set()
        if self._channel is not None:
            self._channel.shut_down()

    def close(self) -> None:
        """See ``Link``."""
        self._disconnect()

    @property
    def _connected(self) -> Channel:
        if self._channel is None:
            raise LinkDown("the worker is not connected")
        return self._channel

    def _disconnect(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = None
        self._blocks.clear()
        self._answers.clear()


def _send_tally(channel: Channel) -> npt.NDArray[np.int64]:
    descriptor = os.memfd_create("titok-tally", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, COUNTER_BYTES)
        channel.send(Tally(), [descriptor])
        return map_counter(descriptor)
    finally:
        os.close(descriptor)


class RemoteEngine(BatchingEngine):
    """See ``service.engine.Engine``. ``addresses`` are the Unix sockets of workers by name, whether they are there yet
    or not; ``depth`` jobs are handed to each at a time.
    """

    def __init__(
        self,
        addresses: Mapping[str, str],
        *,
        limits: LaneLimits | Mapping[LaneName, LaneLimits] | None = None,
        observer: EngineObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_model_info: Callable[[Any], None] | None = None,
        depth: int = _DEPTH,
    ) -> None:
        super().__init__(
            [RemoteLink(name, address, depth) for name, address in addresses.items()],
            shared=True,
            limits=limits,
            observer=observer,
            clock=clock,
            on_model_info=on_model_info,
        )
