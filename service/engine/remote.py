"""The link to a worker process: a connection that is opened again whenever the worker restarts."""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from service.engine.blocks import COUNTER_BYTES, Rows, map_counter, map_rows
from service.engine.jobs import Job, LinkDown, Outcome
from service.engine.wire import Answer, Channel, DeviceFailure, JobMessage, Memory, StartedCounter

log = logging.getLogger(__name__)

_RETRY_SECONDS = 0.05
# One batch runs and one is prefetched. Further ones would wait at the worker, where they cannot grow.
_DEPTH = 2


class RemoteLink:
    """See ``service.engine.jobs.Link``. ``address`` is the path of the worker's Unix socket, which need not exist yet."""

    shares_memory = True

    def __init__(self, name: str, address: str, depth: int = _DEPTH) -> None:
        self.name = name
        self.depth = depth
        self._address = address
        self._channel: Channel | None = None
        self._blocks: set[int] = set()
        self._answers: dict[int, Rows] = {}
        self._interrupted = threading.Event()
        self._poll = select.poll()
        self._started: npt.NDArray[np.int64] = np.zeros(1, np.int64)
        self._received = 0
        self._fault: str | None = None

    def open(self) -> Any:
        """See ``Link``."""
        while not self._interrupted.is_set():
            self.close()
            try:
                self._channel = channel = _connect(self._address)
                if self._interrupted.is_set():  # before there was a channel to shut down
                    break
                message, _ = channel.receive()
                if not isinstance(message, DeviceFailure):
                    self._started = _share_counter(channel)
            except (EOFError, FileNotFoundError, ConnectionError):  # the worker is starting
                self._interrupted.wait(_RETRY_SECONDS)
                continue
            except Exception as error:
                if str(error) != self._fault:
                    log.exception("cannot connect to worker %s, trying again", self.name)
                self._fault = str(error)
                self._interrupted.wait(_RETRY_SECONDS)
                continue
            if isinstance(message, DeviceFailure):
                self._interrupted.wait(_RETRY_SECONDS)
                raise LinkDown(message.reason, is_failure=True)
            self._fault, self._received = None, 0
            self._poll = select.poll()
            self._poll.register(channel.fileno(), select.POLLIN)
            return message.info
        raise LinkDown("the service is shutting down")

    def is_alive(self) -> bool:
        """See ``Link``. An idle worker sends nothing; if the socket is readable, it was closed."""
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
        try:
            self._connected.send(JobMessage(replace(job, block=None), memory), descriptors)
        except OSError as error:
            raise LinkDown(f"the worker has gone: {error}") from None
        if memory is not None:
            self._blocks.add(memory.number)

    def receive(self) -> Outcome:
        """See ``Link``."""
        answer: Answer
        try:
            answer, descriptors = self._connected.receive()
            outcome, memory = answer.outcome, answer.memory
            if memory is not None:
                if memory.is_new:
                    self._answers[memory.number] = map_rows(descriptors[0], memory.shape)
                    os.close(descriptors[0])
                outcome = replace(outcome, result=self._answers[memory.number][: answer.count])
        except (EOFError, OSError) as error:
            raise LinkDown(f"the worker has gone: {error}") from None
        except Exception as error:  # the next message may be cut off, too: only a new connection is in a known state
            log.exception("cannot read an answer of worker %s", self.name)
            raise LinkDown(f"an answer cannot be read: {error!r}") from error
        self._received += 1
        return outcome

    def was_started(self) -> bool:
        """See ``Link``."""
        return int(self._started[0]) > self._received

    def interrupt(self) -> None:
        """See ``Link``."""
        self._interrupted.set()
        if self._channel is not None:
            self._channel.shut_down()

    def close(self) -> None:
        """See ``Link``."""
        if self._channel is not None:
            self._channel.close()
        self._channel = None
        self._blocks.clear()
        self._answers.clear()

    @property
    def _connected(self) -> Channel:
        if self._channel is None:
            raise LinkDown("the worker is not connected")
        return self._channel


def _connect(address: str) -> Channel:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return Channel(connection)


def _share_counter(channel: Channel) -> npt.NDArray[np.int64]:
    """Sends the worker a counter of the jobs it has started."""
    descriptor = os.memfd_create("titok-started", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, COUNTER_BYTES)
        channel.send(StartedCounter(), [descriptor])
        return map_counter(descriptor)
    finally:
        os.close(descriptor)
