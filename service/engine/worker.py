"""The worker's side of the engine: one device, the thread that owns it, and a connection to each front end.

::

    front end ─> reading thread ─┐
    front end ─> reading thread ─┴─> inbox ─> device thread ─> answer to that front end

Jobs run first come, first served; that is fair, because a front end has at most two jobs here.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from service.engine.blocks import Block, Rows, map_counter, map_rows
from service.engine.jobs import Job, JobRunner, Outcome
from service.engine.protocol import Device
from service.engine.wire import Answer, Channel, DeviceFailure, DeviceReady, JobMessage, Memory, RemoteDeviceError

log = logging.getLogger(__name__)

# A front end that does not read its answers loses its connection; others are not held up for longer.
_SEND_SECONDS = 5
_FAILURE_GRACE_SECONDS = 0.5
_ACCEPT_RETRY_SECONDS = 0.1


class _FrontEnd:
    """A connection to a front end, and the memory shared with it."""

    def __init__(self, connection: socket.socket, pin: Callable[[Rows], object] | None) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_SECONDS, 0))
        self.channel = Channel(connection)
        self.is_closed = False
        self.started = np.zeros(1, np.int64)
        self._pin = pin
        self._blocks: dict[int, Rows] = {}
        # Double buffering: the front end reads one block while the device's results are copied into the other.
        self._answers: list[Block | None] = [None, None]
        self._current = 0
        self._closing = threading.Lock()

    def images_of(self, message: JobMessage, descriptors: list[int]) -> Rows | None:
        """Maps the images of a job; None if it has none. Raises ``EOFError`` if the connection was closed meanwhile."""
        memory = message.memory
        if memory is None:
            return None
        if memory.is_new:
            self._blocks[memory.number] = map_rows(descriptors[0], memory.shape, self._pin)
            os.close(descriptors[0])
        rows = self._blocks.get(memory.number)
        if rows is None:  # another thread has closed the connection
            raise EOFError("the connection is closed")
        return rows

    def answer(self, outcome: Outcome) -> None:
        """Sends an outcome; images go into shared memory."""
        result, memory, descriptors, count = outcome.result, None, [], 0
        if outcome.error is not None:
            text = f"{type(outcome.error).__name__}: {outcome.error}"
            outcome = replace(outcome, error=RemoteDeviceError(text))
        if isinstance(result, np.ndarray) and result.dtype == np.uint8:
            self._current = 1 - self._current
            block, count = self._answers[self._current], len(result)
            is_new = block is None or block.capacity < count or block.rows.shape[1:] != result.shape[1:]
            if block is None or is_new:
                if block is not None:
                    block.close()
                block = self._answers[self._current] = Block(self._current, count, result.shape[1:], shared=True)
            if is_new and block.descriptor is not None:
                descriptors = [block.descriptor]
            block.rows[:count] = result
            memory = Memory(block.number, block.rows.shape, is_new)
            outcome = replace(outcome, result=None)
        self.channel.send(Answer(outcome, memory, count), descriptors)

    def close(self) -> None:
        """Closes the connection, once; the memory is freed when the device has finished with it. Thread-safe."""
        with self._closing:
            if self.is_closed:
                return
            self.is_closed = True
        self.channel.shut_down()
        self._blocks.clear()
        for block in self._answers:
            if block is not None:
                block.close()


class DeviceServer:
    """Serves front ends that connect to ``listener``, a listening Unix stream socket, with the device that
    ``device_factory`` opens.
    """

    def __init__(
        self,
        listener: socket.socket,
        device_factory: Callable[[], Device],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listener = listener
        self._device_factory = device_factory
        self._clock = clock
        self._inbox: queue.SimpleQueue[tuple[_FrontEnd, Job, Rows | None] | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._device: Device | None = None
        self._reason: str | None = None
        self._front_ends: set[_FrontEnd] = set()
        self._is_stopping = False
        self._busy_since: float | None = None
        self._batches = 0

    @property
    def status(self) -> dict[str, Any]:
        """``state`` (``opening``, ``ready``, ``failed``), ``reason``, ``busy_seconds`` of the batch in progress, ``batches``
        done, and the status of the device.
        """
        since = self._busy_since
        device = self._device if self._reason is None else None  # a device that is lost may answer nothing any more
        device_status = getattr(device, "status", None)
        return {
            "state": "failed" if self._reason else "opening" if device is None else "ready",
            "reason": self._reason,
            "busy_seconds": 0.0 if since is None else time.monotonic() - since,
            "batches": self._batches,
        } | (device_status() if callable(device_status) else {})

    def run(self) -> None:
        """Opens the device in this thread and serves until ``stop``. Raises what the factory raises, after the front ends
        were informed, and ``DeviceLost``; the job in progress then gets no answer, so that its front end repeats it.
        """
        threading.Thread(target=self._accept, name="accept", daemon=True).start()
        try:
            device = self._device_factory()
        except BaseException as error:
            with self._changed:
                self._reason = f"the device cannot be opened: {error}"
                self._changed.notify_all()
                # Front ends that start at the same time get a moment to connect and learn the reason.
                self._changed.wait_for(lambda: self._is_stopping, _FAILURE_GRACE_SECONDS)
            self.stop()
            raise
        with self._changed:
            self._device = device
            self._changed.notify_all()
        runner = JobRunner(device)
        try:
            while (entry := self._inbox.get()) is not None:
                self._run(runner, *entry)
        except BaseException as error:
            self._reason = str(error) or repr(error)
            raise
        finally:
            self.stop()

    def stop(self) -> None:
        """Ends ``run`` after the batch in progress. Thread-safe."""
        with self._changed:
            self._is_stopping = True
            front_ends = list(self._front_ends)
            self._changed.notify_all()
        self._inbox.put(None)
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread
        self._listener.close()
        for front_end in front_ends:
            front_end.close()

    def _run(self, runner: JobRunner, front_end: _FrontEnd, job: Job, images: Rows | None) -> None:
        if front_end.is_closed:
            return
        front_end.started[0] += 1
        outcome = Outcome(seconds=0.0)
        if self._clock() < job.deadline:
            self._busy_since = time.monotonic()
            outcome = runner.run(job, images)
            self._busy_since = None
            self._batches += 1
        try:
            front_end.answer(outcome)
        except OSError as error:
            log.warning("a front end has disconnected before its answer: %s", error)
            front_end.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), name="front end", daemon=True).start()
            except (OSError, RuntimeError) as error:
                with self._changed:
                    if self._is_stopping:
                        return  # the listener is closed
                    log.error("cannot accept a front end, trying again: %s", error)  # noqa: TRY400  out of descriptors or threads
                    self._changed.wait_for(lambda: self._is_stopping, _ACCEPT_RETRY_SECONDS)

    def _serve(self, connection: socket.socket) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._device or self._reason or self._is_stopping)
            device, reason = None if self._is_stopping else self._device, self._reason
            front_end = _FrontEnd(connection, getattr(device, "pin", None))
            self._front_ends.add(front_end)
        try:
            if device is None:
                front_end.channel.send(DeviceFailure(reason or "the worker is stopping"))
                return
            front_end.channel.send(DeviceReady(getattr(device, "info", None)))
            _, [descriptor] = front_end.channel.receive()
            front_end.started = map_counter(descriptor)
            os.close(descriptor)
            while True:
                message, descriptors = front_end.channel.receive()
                self._inbox.put((front_end, message.job, front_end.images_of(message, descriptors)))
        except (EOFError, OSError):
            pass  # the front end has disconnected
        finally:
            front_end.close()
            front_end.channel.close()
            with self._changed:
                self._front_ends.discard(front_end)
